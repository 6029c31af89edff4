"""The Gated Memory Unit: a layer's scan, read again by the layers above it.

Paper: Ren et al., "Decoder-Hybrid-Decoder Architecture for Efficient Reasoning with Long Generation" (SambaY), 2025,
https://arxiv.org/abs/2507.06607.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from statescan.layers.linear import Linear
from statescan.layers.norm import RMSNorm
from statescan.ops.checks import check_positive
from statescan.protocols import Bus, Stateless
from statescan.registry import register
from statescan.timeline import Timeline, hide


@register
class GatedMemoryUnit(Stateless):
    """y = out_proj(m * silu(in_proj(x))), with the memory m that a mixer with ``share=source`` left on the bus (Mamba, Mamba2).

    Args:
        d_model: width D.
        source: key of the bus.
        d_inner: width E of the memory.
        norm: the paper's nGMU, for the memories of linear attention: out_proj(RMSNorm(m * silu(in_proj(x)))).
        norm_eps: of that norm.

    Shapes: (B, L, D) and the memory (B, L, E) -> (B, L, D). State: the empty tuple; the memory is that of the same positions, and
    so is the time that it has seen pass.
    """

    has_time = True
    residual_outputs = ("out_proj",)
    examples = ()  # nothing stands on the bus of a layer alone

    def __init__(self, d_model: int, source: str, d_inner: int, norm: bool = False, norm_eps: float = 1e-5) -> None:
        super().__init__()
        check_positive(d_model=d_model, d_inner=d_inner)
        self.source, self.reads, self.d_inner = source, (source,), d_inner
        self.in_proj = Linear(d_model, d_inner, bias=False)
        self.norm = RMSNorm(d_inner, norm_eps) if norm else nn.Identity()
        self.out_proj = Linear(d_inner, d_model, bias=False)

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: tuple[()] | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        memory = None if bus is None else bus.get(self.source)
        if memory is None:
            raise ValueError(
                f"GatedMemoryUnit reads {self.source!r} from the bus: put a Mamba or Mamba2 with share={self.source!r} before it"
            )
        if memory.shape != (*x.shape[:2], self.d_inner):
            raise ValueError(f"the memory {self.source!r} must have shape {(*x.shape[:2], self.d_inner)}; got {tuple(memory.shape)}")
        y = hide(self.out_proj(self.norm(memory * F.silu(self.in_proj(hide(x, timeline))))), timeline)
        return (y, ()) if return_state else y
