"""Attention to the keys and values of a layer below: queries only.

Papers: Sun et al., "You Only Cache Once: Decoder-Decoder Architectures for Language Models", 2024, https://arxiv.org/abs/2405.05254;
Ren et al., "Decoder-Hybrid-Decoder Architecture for Efficient Reasoning with Long Generation" (SambaY), 2025,
https://arxiv.org/abs/2507.06607.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from statescan.layers.linear import Linear
from statescan.layers.rotary import rotate
from statescan.mixers.attention import Difference, head_sizes, see
from statescan.mixers.sight import Shared
from statescan.protocols import Bus, Stateless
from statescan.registry import register
from statescan.timeline import Timeline, hide


@register
class CrossAttention(Stateless):
    """Causal attention of H heads over the keys and values that :class:`Attention` with ``share=source`` left on the bus::

        y = o_proj(sum_s A_ts v_s),   A_ts = softmax over the s that the sharing layer sees, of scale q_proj(x_t) k_s

    Queries turn by the angles of the keys, and see the sharing layer's window.

    Args:
        d_model: width D.
        num_heads: query heads, H.
        source: key of the bus.
        num_kv_heads: key and value heads of the sharing layer; None is H.
        head_dim: its channels a head, P; None is d_model / H.
        bias: bias of q_proj.
        out_bias: bias of o_proj.
        scale: of the products before the softmax; None is 1 / sqrt(P).
        lambda_init: differential attention with this constant, as in :class:`Attention`.
        norm_eps: of the differential form's norm.

    Shapes: (B, L, D) -> (B, L, D). State: the empty tuple, as the cache is that of the sharing layer, whatever the number of layers
    that read it. So both layers must see the same call: the same positions, and the sharing layer's state carried along.
    """

    residual_outputs = ("o_proj",)
    examples = ()  # nothing stands on the bus of a layer alone

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        source: str,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = False,
        out_bias: bool = False,
        scale: float | None = None,
        lambda_init: float | None = None,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        heads = self.num_heads, self.num_kv_heads, self.head_dim = head_sizes(d_model, num_heads, num_kv_heads, head_dim)
        self.source, self.reads = source, (source,)
        self.scale = self.head_dim**-0.5 if scale is None else scale
        self.q_proj = Linear(d_model, self.num_heads * self.head_dim, bias=bias)
        self.difference = None if lambda_init is None else Difference(*heads, lambda_init, norm_eps)
        self.o_proj = Linear(self.num_heads * self.head_dim, d_model, bias=out_bias)

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: tuple[()] | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        if timeline is not None:
            timeline = timeline.without_interval(type(self).__name__)
        shared = self._shared(bus)
        q = self.q_proj(hide(x, timeline)).unflatten(-1, (self.num_heads, self.head_dim))
        if shared.rotary is not None:
            q = rotate(q, shared.sight.position, *shared.rotary)
        y = see(self.difference, q, shared.keys, shared.values, shared.sight, shared.window, self.scale)
        y = hide(self.o_proj(y.flatten(2)), timeline)
        return (y, ()) if return_state else y

    def _shared(self, bus: Bus | None) -> Shared:
        shared = None if bus is None else bus.get(self.source)
        if not isinstance(shared, Shared):
            raise ValueError(f"CrossAttention reads {self.source!r} from the bus: put an Attention with share={self.source!r} before it")
        heads = (self.num_kv_heads, self.head_dim)
        if shared.keys.shape[2:] != heads:
            raise ValueError(
                f"CrossAttention expects keys of {heads} (num_kv_heads, head_dim) under {self.source!r}; got {tuple(shared.keys.shape[2:])}"
            )
        return shared
