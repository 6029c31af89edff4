"""Kimi Delta Attention: Gated DeltaNet with a decay for each key channel.

Paper: Kimi Team, "Kimi Linear: An Expressive, Efficient Attention Architecture", 2025, https://arxiv.org/abs/2510.26692. Parameter names
follow the released checkpoints; the two low-rank maps are flat attributes (``f_a_proj``, ``f_b_proj``, ``g_a_proj``, ``g_b_proj``).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from statescan.layers import init_delta_bias
from statescan.layers.linear import Linear
from statescan.mixers.delta import DeltaMixer, head_decay, strength
from statescan.ops.checks import state_dtype
from statescan.registry import register


@register
class KDA(DeltaMixer):
    """Per head, with unit queries and keys (see :class:`~statescan.mixers.delta.DeltaMixer` for the whole layer)::

        beta_t = sigmoid(b_proj(x_t)),   g_t = -exp(A_log) softplus(f_b_proj(f_a_proj(x_t)) + dt_bias)        (K)
        S     <- Diag(exp(g_t)) S_{t-1};   S_t = S + beta_t k_t (v_t - S^T k_t)^T
        y_t    = o_proj(RMSNorm(S_t^T q_t / sqrt(K)) * sigmoid(g_b_proj(g_a_proj(x_t))))

    Without ``low_rank`` the decay reads f_proj(x_t) and the gate g_proj(x_t), as in Ling 3.

    Args:
        d_model: width D.
        num_heads: heads H.
        head_dim: key width K, and the rank of the two low-rank maps.
        expand_v: value width a head is V = expand_v * head_dim.
        lower_bound: a negative number bounds the decay instead: g = lower_bound * sigmoid(exp(A_log) (f + dt_bias)), with A_log = 0 at
            first; the published choice is -5. None is the formula above.
        gate_bias: bias of g_b_proj, or of g_proj.
        allow_neg_eigval: beta in (0, 2), so that the transition may have eigenvalues down to -1.
        conv_size: taps of the short convolutions.
        norm_eps: of the norm.
        low_rank: decay and gate come from two maps of rank K each; else from one full map each.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`~statescan.mixers.delta.DeltaState`.
    """

    dynamics = ("A_log", "dt_bias")
    examples = (
        {"num_heads": 2, "head_dim": 6, "expand_v": 1.5},
        {"num_heads": 3, "head_dim": 4, "lower_bound": -5.0, "gate_bias": True, "allow_neg_eigval": True, "conv_size": 3,
         "low_rank": False},
    )  # fmt: skip

    def __init__(
        self,
        d_model: int,
        num_heads: int = 32,
        head_dim: int = 128,
        expand_v: float = 1.0,
        lower_bound: float | None = None,
        gate_bias: bool = False,
        allow_neg_eigval: bool = False,
        conv_size: int = 4,
        norm_eps: float = 1e-5,
        low_rank: bool = True,
    ) -> None:
        if lower_bound is not None and not lower_bound < 0:
            raise ValueError(f"lower_bound must be negative, or None; got {lower_bound}")
        width = round(expand_v * head_dim)
        super().__init__(d_model, num_heads, num_heads, head_dim, width, 1, conv_size, norm_eps)
        self.allow_neg_eigval, self.lower_bound, self.low_rank = allow_neg_eigval, lower_bound, low_rank
        if low_rank:
            self.f_a_proj = Linear(d_model, head_dim, bias=False)
            self.f_b_proj = Linear(head_dim, num_heads * head_dim, bias=False)
        else:
            self.f_proj = Linear(d_model, num_heads * head_dim, bias=False)
        self.b_proj = Linear(d_model, num_heads, bias=False)
        if low_rank:
            self.g_a_proj = Linear(d_model, head_dim, bias=False)
            self.g_b_proj = Linear(head_dim, num_heads * width, bias=gate_bias)
        else:
            self.g_proj = Linear(d_model, num_heads * width, bias=gate_bias)
        self.A_log = nn.Parameter(torch.empty(num_heads).uniform_(1, 16).log() if lower_bound is None else torch.zeros(num_heads))
        self.dt_bias = nn.Parameter(init_delta_bias((num_heads * head_dim,), 0.001, 0.1, 1e-4))

    def rates(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        raw = (self.f_b_proj(self.f_a_proj(x)) if self.low_rank else self.f_proj(x)).unflatten(-1, self.key_shape)
        A_log, dt_bias = self.A_log.unsqueeze(-1), self.dt_bias.view(self.key_shape)
        if self.lower_bound is None:
            log_decay = head_decay(raw, A_log, dt_bias)
        else:
            dtype = state_dtype(raw)
            log_decay = self.lower_bound * torch.sigmoid(A_log.to(dtype).exp() * (raw.to(dtype) + dt_bias.to(dtype)))
        return strength(self.b_proj(x), self.allow_neg_eigval).unsqueeze(2), log_decay

    def gate(self, x: Tensor) -> Tensor | None:
        return torch.sigmoid(self.g_b_proj(self.g_a_proj(x)) if self.low_rank else self.g_proj(x))
