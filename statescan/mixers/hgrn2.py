"""HGRN2: a gated linear recurrence whose key is what the forget gate lets go, so that a matrix state costs no further parameters.

Paper: Qin, Yang, Sun, Shen, Li, Sun and Zhong, "HGRN2: Gated Linear RNNs with State Expansion", 2024, https://arxiv.org/abs/2404.07904.
Parameter names are those of the released code (flash-linear-attention).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.layers import RMSNorm
from statescan.layers.linear import Linear
from statescan.mixers.gla import MatrixState, zeros_for
from statescan.ops import linear_attention
from statescan.ops.checks import state_dtype
from statescan.protocols import Bus, CausalMixer
from statescan.registry import register
from statescan.timeline import Timeline, hide


@register
class HGRN2(CausalMixer):
    """Per head, with K = expand_ratio, H = D / K heads, and so as many value channels::

        f_t = l + (1 - l) sigmoid(f_proj(x_t))                  (K)
        S_t = Diag(f_t) S_{t-1} + (1 - f_t) i_proj(x_t)^T
        y_t = o_proj(RMSNorm(S_t^T silu(q_proj(x_t)) / sqrt(K)))      the norm is over the whole width

    Every entry of the state is a weighted mean of values.

    Args:
        d_model: width D.
        expand_ratio: key width a head, a divisor of D.
        lower_bound: l in [0, 1), 0 in the first layer of the published models and rising with depth. There it is learned, jointly for all
            layers; here it is a number.
        norm_eps: of the norm.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`~statescan.mixers.gla.MatrixState`.
    """

    residual_outputs = ("o_proj",)
    examples = ({"expand_ratio": 8}, {"expand_ratio": 4, "lower_bound": 0.6})

    def __init__(self, d_model: int, expand_ratio: int = 128, lower_bound: float = 0.0, norm_eps: float = 1e-5) -> None:
        super().__init__()
        if expand_ratio < 1 or d_model % expand_ratio:
            raise ValueError(f"expand_ratio must divide d_model; got {expand_ratio} and {d_model}")
        if not 0 <= lower_bound < 1:
            raise ValueError(f"lower_bound must lie in [0, 1); got {lower_bound}")
        self.d_model, self.expand_ratio, self.lower_bound = d_model, expand_ratio, lower_bound
        self.q_proj = Linear(d_model, d_model, bias=False)
        self.f_proj = Linear(d_model, d_model, bias=False)
        self.i_proj = Linear(d_model, d_model, bias=False)
        self.g_norm = RMSNorm(d_model, norm_eps)
        self.o_proj = Linear(d_model, d_model, bias=False)

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
        raw = self.f_proj(x)
        raw = raw.to(state_dtype(raw))
        kept, heads = F.logsigmoid(raw), (-1, self.expand_ratio)
        if self.lower_bound:
            kept = torch.logaddexp(kept + math.log1p(-self.lower_bound), torch.full_like(kept, math.log(self.lower_bound)))
        y, s = linear_attention(
            F.silu(self.q_proj(x)).unflatten(-1, heads), ((1 - self.lower_bound) * torch.sigmoid(-raw)).unflatten(-1, heads),
            self.i_proj(x).unflatten(-1, heads), kept.unflatten(-1, heads),
            state=None if state is None else state.s, timeline=timeline, return_state=True,
        )  # fmt: skip
        y = hide(self.o_proj(self.g_norm(y.flatten(-2))), timeline)
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
        heads = self.d_model // self.expand_ratio
        return MatrixState(zeros_for(self.o_proj.weight, device, batch_size, heads, self.expand_ratio, self.expand_ratio))
