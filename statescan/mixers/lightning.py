"""Lightning attention: linear attention under a constant decay a head, as MiniMax-01 has it.

Papers: MiniMax, "MiniMax-01: Scaling Foundation Models with Lightning Attention", 2025, https://arxiv.org/abs/2501.08313; Qin et al.,
"Various Lengths, Constant Speed: Efficient Language Modeling with Lightning Attention", 2024, https://arxiv.org/abs/2405.17381. Parameter
names and shapes are those of transformers' checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.layers import RMSNorm
from statescan.layers.linear import Linear
from statescan.mixers.gla import MatrixState, zeros_for
from statescan.ops import linear_attention
from statescan.ops.checks import check_positive
from statescan.protocols import Bus, CausalMixer
from statescan.registry import register
from statescan.timeline import Timeline, hide


@register
class LightningAttention(CausalMixer):
    """Per head h of P channels::

        q, k, v = silu(qkv_proj(x))                                       side by side in each head
        S_t = e^{-slope_h} S_{t-1} + k_t v_t^T
        y_t = out_proj(RMSNorm(S_t^T q_t) * sigmoid(output_gate(x_t)))    the norm is over all heads

    The slopes are a buffer, 2^{-8 (h+1) / H} times ``slope_scale`` to begin with. In MiniMax-01 the scale of layer i of n falls from 1 to
    nearly 0, as 1 - i / (n - 1).

    Args:
        d_model: width D.
        num_heads: heads H.
        head_dim: channels a head, P; None is D / H.
        slope_scale: of the initial slopes.
        norm_eps: of the norm.
        block_size: positions of a block in transformers, which keeps tables of decays of that size in its files. Nothing is computed with
            it here.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`MatrixState`.
    """

    dynamics = ("slope_rate",)
    residual_outputs = ("out_proj",)
    examples = ({"num_heads": 3, "head_dim": 5, "slope_scale": 0.4},)
    slope_rate: Tensor

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        head_dim: int | None = None,
        slope_scale: float = 1.0,
        norm_eps: float = 1e-6,
        block_size: int = 256,
    ) -> None:
        super().__init__()
        check_positive(d_model=d_model, num_heads=num_heads, slope_scale=slope_scale, block_size=block_size)
        if head_dim is None and d_model % num_heads:
            raise ValueError(f"num_heads must divide d_model where head_dim is not given; got {num_heads} and {d_model}")
        self.num_heads, self.head_dim = num_heads, d_model // num_heads if head_dim is None else head_dim
        check_positive(head_dim=self.head_dim)
        inner = num_heads * self.head_dim
        self.qkv_proj = Linear(d_model, 3 * inner, bias=False)
        self.output_gate = Linear(d_model, inner, bias=False)
        self.norm = RMSNorm(inner, norm_eps)
        self.out_proj = Linear(inner, d_model, bias=False)
        slopes = slope_scale * 2.0 ** (-8 * (torch.arange(num_heads) + 1) / num_heads)
        self.register_buffer("slope_rate", slopes.view(num_heads, 1, 1))

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: MatrixState | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        if timeline is not None:
            timeline = timeline.without_interval(type(self).__name__)
        x = hide(x, timeline)
        q, k, v = F.silu(self.qkv_proj(x)).unflatten(-1, (self.num_heads, -1)).split(self.head_dim, dim=-1)
        y, s = linear_attention(
            q, k, v, -self.slope_rate.flatten(), scale=1.0, state=None if state is None else state.s, timeline=timeline, return_state=True
        )
        y = hide(self.out_proj(self.norm(y.flatten(-2)) * torch.sigmoid(self.output_gate(x))), timeline)
        return (y, MatrixState(s)) if return_state else y

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> MatrixState:
        """Zeros."""
        return MatrixState(zeros_for(self.out_proj.weight, device, batch_size, self.num_heads, self.head_dim, self.head_dim))
