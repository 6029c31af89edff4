"""Gated linear attention: a matrix state whose every key channel decays by an amount that the input decides.

Paper: Yang, Wang, Shen, Panda and Kim, "Gated Linear Attention Transformers with Hardware-Efficient Training", 2023,
https://arxiv.org/abs/2312.06635. Parameter names are those of the released code (flash-linear-attention).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.layers import RMSNorm
from statescan.layers.linear import Linear
from statescan.mixers.deltanet import split_width
from statescan.ops import linear_attention
from statescan.ops.checks import check_positive, state_dtype
from statescan.protocols import Bus, CausalMixer
from statescan.registry import register
from statescan.state import state as declare_state
from statescan.timeline import Timeline, hide


@declare_state
class MatrixState(NamedTuple):
    """Float32."""

    s: Tensor
    """(B, H, key width, value width)"""


@register
class GLA(CausalMixer):
    """Per head::

        g_t = logsigmoid(gk_proj(x_t)) / tau                          (K), gk_proj of low rank
        S_t = Diag(exp(g_t)) S_{t-1} + k_t v_t^T
        y_t = o_proj(RMSNorm(S_t^T q_t / sqrt(K)) * silu(g_proj(x_t)))     the norm is over the value width of a head

    Args:
        d_model: width D.
        num_heads: heads H.
        expand_k: key width a head is K = expand_k * D / H.
        expand_v: value width a head is V = expand_v * D / H.
        gate_low_rank_dim: rank of gk_proj.
        gate_logit_normalizer: tau.
        norm_eps: of the norm.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`MatrixState`.
    """

    residual_outputs = ("o_proj",)
    examples = ({"num_heads": 2}, {"num_heads": 4, "expand_k": 0.25, "expand_v": 0.5, "gate_low_rank_dim": 3, "gate_logit_normalizer": 2.0})

    def __init__(
        self,
        d_model: int,
        num_heads: int = 4,
        expand_k: float = 0.5,
        expand_v: float = 1.0,
        gate_low_rank_dim: int = 16,
        gate_logit_normalizer: float = 16.0,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        check_positive(d_model=d_model, gate_low_rank_dim=gate_low_rank_dim, gate_logit_normalizer=gate_logit_normalizer)
        key_width, value_width = (
            split_width("expand_k", d_model, expand_k, num_heads),
            split_width("expand_v", d_model, expand_v, num_heads),
        )
        self.num_heads, self.key_width, self.value_width = num_heads, key_width, value_width
        self.gate_logit_normalizer = gate_logit_normalizer
        keys, values = num_heads * key_width, num_heads * value_width
        self.q_proj = Linear(d_model, keys, bias=False)
        self.k_proj = Linear(d_model, keys, bias=False)
        self.v_proj = Linear(d_model, values, bias=False)
        self.g_proj = Linear(d_model, values, bias=False)
        self.gk_proj = nn.Sequential(Linear(d_model, gate_low_rank_dim, bias=False), Linear(gate_low_rank_dim, keys))
        self.g_norm_swish_gate = RMSNorm(value_width, norm_eps)
        self.o_proj = Linear(values, d_model, bias=False)

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
        raw, heads = self.gk_proj(x), (self.num_heads, -1)
        log_decay = F.logsigmoid(raw.to(state_dtype(raw))) / self.gate_logit_normalizer
        q, k, v = (proj(x).unflatten(-1, heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        y, s = linear_attention(
            q, k, v, log_decay.unflatten(-1, heads), state=None if state is None else state.s, timeline=timeline, return_state=True
        )
        y = hide(self.o_proj(self.g_norm_swish_gate(y).flatten(-2) * F.silu(self.g_proj(x))), timeline)
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
        return MatrixState(zeros_for(self.o_proj.weight, device, batch_size, self.num_heads, self.key_width, self.value_width))


def zeros_for(weight: Tensor, device: torch.device | str | None, *shape: int) -> Tensor:
    """A state of zeros for a layer with this weight."""
    return torch.zeros(shape, dtype=state_dtype(weight), device=weight.device if device is None else device)
