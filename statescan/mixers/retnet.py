"""RetNet's retention: linear attention under a constant decay a head, with rotary positions.

Paper: Sun et al., "Retentive Network: A Successor to Transformer for Large Language Models", 2023, https://arxiv.org/abs/2307.08621.
Parameter names are those of the released code (flash-linear-attention), which rotates without the paper's xPos scaling and leaves all
normalising to the norm of each head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.layers import RMSNorm
from statescan.layers.linear import Linear
from statescan.layers.rotary import rotate
from statescan.mixers.deltanet import split_width
from statescan.mixers.gla import zeros_for
from statescan.mixers.sight import Sight
from statescan.ops import linear_attention
from statescan.ops.checks import state_dtype
from statescan.protocols import Bus, CausalMixer
from statescan.registry import register
from statescan.state import state as declare_state
from statescan.timeline import Timeline, hide


@declare_state
class RetentionState(NamedTuple):
    """What a constant decay and rotary positions need."""

    s: Tensor
    """(B, H, key width, value width), float32."""
    position: Tensor
    """int64 (B,): existing positions since the last reset."""


@register
class RetNet(CausalMixer):
    """Per head h, with q and k rotated by their positions::

        S_t = (1 - 2^{-5-h}) S_{t-1} + k_t v_t^T
        y_t = o_proj(RMSNorm(S_t^T q_t / sqrt(K)) * silu(g_proj(x_t)))     the norm is over the value width of a head

    Args:
        d_model: width D.
        num_heads: heads H.
        expand_k: key width a head is K = expand_k * D / H, an even number.
        expand_v: value width a head is V = expand_v * D / H.
        rotary_base: base of the rotary angles.
        norm_eps: of the norm.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`RetentionState`.
    """

    residual_outputs = ("o_proj",)
    examples = ({"num_heads": 2}, {"num_heads": 4, "expand_k": 0.25, "expand_v": 0.5, "rotary_base": 50.0})

    def __init__(
        self,
        d_model: int,
        num_heads: int = 8,
        expand_k: float = 1.0,
        expand_v: float = 2.0,
        rotary_base: float = 10000.0,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.num_heads, self.rotary_base = num_heads, rotary_base
        self.key_width = key_width = split_width("expand_k", d_model, expand_k, num_heads)
        self.value_width = value_width = split_width("expand_v", d_model, expand_v, num_heads)
        if key_width % 2:
            raise ValueError(f"the key width of a head, expand_k * d_model / num_heads, must be even to rotate; got {key_width}")
        keys, values = num_heads * key_width, num_heads * value_width
        self.q_proj = Linear(d_model, keys, bias=False)
        self.k_proj = Linear(d_model, keys, bias=False)
        self.v_proj = Linear(d_model, values, bias=False)
        self.g_proj = Linear(d_model, values, bias=False)
        self.g_norm_swish_gate = RMSNorm(value_width, norm_eps)
        self.o_proj = Linear(values, d_model, bias=False)

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: RetentionState | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        if timeline is not None:
            timeline = timeline.without_interval(type(self).__name__)
        x, heads = hide(x, timeline), (self.num_heads, -1)
        sight = Sight.of(timeline, None if state is None else state.position, x.shape[0], x.shape[1], x.device)
        q, k, v = (proj(x).unflatten(-1, heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = (rotate(tensor, sight.position, self.rotary_base, self.key_width) for tensor in (q, k))
        log_decay = torch.log1p(-(2.0 ** (-5 - torch.arange(self.num_heads, dtype=state_dtype(x), device=x.device))))
        y, s = linear_attention(q, k, v, log_decay, state=None if state is None else state.s, timeline=timeline, return_state=True)
        y = hide(self.o_proj(self.g_norm_swish_gate(y).flatten(-2) * F.silu(self.g_proj(x))), timeline)
        return (y, RetentionState(s, sight.last)) if return_state else y

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> RetentionState:
        """Zeros."""
        s = zeros_for(self.o_proj.weight, device, batch_size, self.num_heads, self.key_width, self.value_width)
        return RetentionState(s, torch.zeros(batch_size, dtype=torch.long, device=s.device))
