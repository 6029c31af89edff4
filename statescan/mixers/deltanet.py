"""DeltaNet: linear attention that replaces the value under a key instead of adding to it.

Paper: Yang, Wang, Zhang, Shen and Kim, "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", 2024,
https://arxiv.org/abs/2406.06484. Parameter names are those of the released code (flash-linear-attention).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from statescan.layers.linear import Linear
from statescan.mixers.delta import DeltaMixer, strength
from statescan.registry import register


@register
class DeltaNet(DeltaMixer):
    """Per head, with unit queries and keys (see :class:`~statescan.mixers.delta.DeltaMixer` for the whole layer)::

        beta_t = sigmoid(b_proj(x_t))
        S_t    = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T
        y_t    = o_proj(RMSNorm(S_t^T q_t / sqrt(K)))

    Args:
        d_model: width D.
        num_heads: heads H.
        expand_k: key width a head is K = expand_k * D / H.
        expand_v: value width a head is V = expand_v * D / H.
        use_gate: multiply the normalised output by silu(g_proj(x)).
        allow_neg_eigval: beta in (0, 2), so that the transition may have eigenvalues down to -1.
        conv_size: taps of the short convolutions.
        norm_eps: of the norm.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`~statescan.mixers.delta.DeltaState`.
    """

    examples = ({"num_heads": 2, "expand_k": 0.5}, {"num_heads": 4, "use_gate": True, "allow_neg_eigval": True, "conv_size": 3})

    def __init__(
        self,
        d_model: int,
        num_heads: int = 4,
        expand_k: float = 1.0,
        expand_v: float = 1.0,
        use_gate: bool = False,
        allow_neg_eigval: bool = False,
        conv_size: int = 4,
        norm_eps: float = 1e-5,
    ) -> None:
        key_width = split_width("expand_k", d_model, expand_k, num_heads)
        value_width = split_width("expand_v", d_model, expand_v, num_heads)
        super().__init__(d_model, num_heads, num_heads, key_width, value_width, 1, conv_size, norm_eps)
        self.allow_neg_eigval = allow_neg_eigval
        self.b_proj = Linear(d_model, num_heads, bias=False)
        self.g_proj = Linear(d_model, num_heads * value_width, bias=False) if use_gate else None

    def rates(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return strength(self.b_proj(x), self.allow_neg_eigval).unsqueeze(2), None

    def gate(self, x: Tensor) -> Tensor | None:
        return None if self.g_proj is None else F.silu(self.g_proj(x))


def split_width(name: str, d_model: int, expand: float, heads: int) -> int:
    """expand * d_model / heads, which must be a whole number."""
    width = int(expand * d_model)
    if heads < 1 or width < heads or width % heads:
        raise ValueError(f"{name} * d_model must be a multiple of the heads; got {name}={expand}, d_model={d_model}, {heads} heads")
    return width // heads
