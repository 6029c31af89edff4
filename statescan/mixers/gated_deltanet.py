"""Gated DeltaNet: the delta rule under Mamba-2's decay; with several writes a position, Gated DeltaProduct.

Papers: Yang, Kautz and Hatamizadeh, "Gated Delta Networks: Improving Mamba2 with Delta Rule", 2024, https://arxiv.org/abs/2412.06464;
Grazzi et al., "Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues", 2024, https://arxiv.org/abs/2411.12537; Siems et al.,
"DeltaProduct", 2025, https://arxiv.org/abs/2502.10297. Parameter names are those of the released code (flash-linear-attention).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.layers import init_delta_bias
from statescan.layers.linear import Linear
from statescan.mixers.delta import DeltaMixer, head_decay, strength
from statescan.ops.checks import check_range
from statescan.registry import register


@register
class GatedDeltaNet(DeltaMixer):
    """Per value head, with unit queries and keys (see :class:`~statescan.mixers.delta.DeltaMixer` for the whole layer)::

        beta_t = sigmoid(b_proj(x_t)),   g_t = -exp(A_log) softplus(a_proj(x_t) + dt_bias)
        S     <- exp(g_t) S_{t-1}
        S     <- S + beta_j k_j (v_j - S^T k_j)^T          for each of the n writes
        y_t    = o_proj(RMSNorm(S_t^T q_t / sqrt(K)) * silu(g_proj(x_t)))

    Args:
        d_model: width D.
        num_heads: heads of queries and keys.
        head_dim: their width K.
        num_v_heads: heads of the values, a multiple of num_heads; None is num_heads.
        expand_v: value width a head is V = expand_v * head_dim.
        num_writes: writes a position, n: DeltaProduct's Householder factors. Its keys, values and strengths are laid out (n, heads, width).
        use_gate: multiply the normalised output by silu(g_proj(x)).
        allow_neg_eigval: beta in (0, 2), so that the transition may have eigenvalues down to -1; DeltaProduct's usual choice.
        conv_size: taps of the short convolutions.
        norm_eps: of the norm.
        A_init_range: A starts uniform in it; the paper has 0 to 16, of which the least is left out for its logarithm. With little of it a
            layer starts by keeping all that it reads, like DeltaNet.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`~statescan.mixers.delta.DeltaState`.
    """

    dynamics = ("A_log", "dt_bias")
    examples = (
        {"num_heads": 2, "head_dim": 6, "num_v_heads": 4, "expand_v": 1.5},
        {"num_heads": 2, "head_dim": 8, "expand_v": 1, "num_writes": 2, "use_gate": False, "allow_neg_eigval": True, "conv_size": 3},
    )

    def __init__(
        self,
        d_model: int,
        num_heads: int = 6,
        head_dim: int = 256,
        num_v_heads: int | None = None,
        expand_v: float = 2.0,
        num_writes: int = 1,
        use_gate: bool = True,
        allow_neg_eigval: bool = False,
        conv_size: int = 4,
        norm_eps: float = 1e-5,
        A_init_range: tuple[float, float] = (1e-3, 16.0),
    ) -> None:
        check_range(A_init_range=A_init_range)
        heads, width = num_heads if num_v_heads is None else num_v_heads, round(expand_v * head_dim)
        super().__init__(d_model, num_heads, heads, head_dim, width, num_writes, conv_size, norm_eps)
        self.allow_neg_eigval = allow_neg_eigval
        self.a_proj = Linear(d_model, heads, bias=False)
        self.b_proj = Linear(d_model, num_writes * heads, bias=False)
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(*A_init_range).log())
        self.dt_bias = nn.Parameter(init_delta_bias((heads,), 0.001, 0.1, 1e-4))
        self.g_proj = Linear(d_model, heads * width, bias=False) if use_gate else None

    def rates(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        beta = strength(self.b_proj(x), self.allow_neg_eigval).unflatten(-1, (self.num_writes, -1))
        return beta, head_decay(self.a_proj(x), self.A_log, self.dt_bias)

    def gate(self, x: Tensor) -> Tensor | None:
        return None if self.g_proj is None else F.silu(self.g_proj(x))
