"""MesaNet: linear attention that reads out the least-squares fit of what it has seen.

Paper: von Oswald et al., "MesaNet: Sequence Modeling by Locally Optimal Test-Time Training", 2025, https://arxiv.org/abs/2506.05233.
Parameter names are those of the released code (flash-linear-attention).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.layers import CausalConv1d, RMSNorm
from statescan.layers.linear import Linear
from statescan.mixers.delta import unit
from statescan.mixers.gla import zeros_for
from statescan.ops import mesa
from statescan.ops.checks import check_positive, state_dtype
from statescan.protocols import Bus, CausalMixer
from statescan.registry import register
from statescan.state import state as declare_state
from statescan.timeline import Timeline, hide


@declare_state
class MesaState(NamedTuple):
    """Float32. The convolutions' tails are their last existing inputs, oldest first."""

    q: Tensor
    """(B, K-1, H * head width)"""
    k: Tensor
    """(B, K-1, H * head width)"""
    g: Tensor
    """(B, H, head width, head width): the decaying sum of beta k k^T."""
    s: Tensor
    """(B, H, head width, head width): of beta k v^T."""


@register
class MesaNet(CausalMixer):
    """Per head, with unit queries and keys::

        q, k   = silu(conv1d(q_proj(x))), silu(conv1d(k_proj(x)));   v = v_proj(x)
        beta_t = sigmoid(b_proj(x_t)),   g_t = logsigmoid(a_proj(x_t))
        G_t    = e^{g_t} G_{t-1} + beta_t k_t k_t^T,   S_t = e^{g_t} S_{t-1} + beta_t k_t v_t^T
        y_t    = o_proj(RMSNorm(S_t^T (G_t + Diag(ridge))^{-1} q_t))        the norm is over the width of a head

    ridge = softplus(lambda_params) + lambda_lower_bound, one a channel.

    Args:
        d_model: width D.
        num_heads: heads H.
        head_dim: width of a head's queries, keys and values.
        use_gate: multiply the normalised output by silu(g_proj(x)).
        conv_size: taps of the short convolutions of q and k.
        lambda_lower_bound: the ridge is larger than this; it starts at 1.
        iterations: of the conjugate gradients that solve for the fit.
        norm_eps: of the norm.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`MesaState`.
    """

    dynamics = ("lambda_params",)
    residual_outputs = ("o_proj",)
    examples = ({"num_heads": 2, "head_dim": 3, "use_gate": True, "conv_size": 3, "lambda_lower_bound": 0.5},)

    def __init__(
        self,
        d_model: int,
        num_heads: int = 16,
        head_dim: int = 128,
        use_gate: bool = False,
        conv_size: int = 4,
        lambda_lower_bound: float = 0.25,
        iterations: int = 30,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        check_positive(d_model=d_model, num_heads=num_heads, head_dim=head_dim, conv_size=conv_size, iterations=iterations)
        if not 0 < lambda_lower_bound < 1:
            raise ValueError(f"lambda_lower_bound lies between 0 and the ridge's first value, 1; got {lambda_lower_bound}")
        width = num_heads * head_dim
        self.heads, self.conv_size, self.iterations = (num_heads, head_dim), conv_size, iterations
        self.lambda_lower_bound = lambda_lower_bound
        self.q_proj = Linear(d_model, width, bias=False)
        self.k_proj = Linear(d_model, width, bias=False)
        self.v_proj = Linear(d_model, width, bias=False)
        self.a_proj = Linear(d_model, num_heads)
        self.b_proj = Linear(d_model, num_heads)
        self.lambda_params = nn.Parameter(torch.full((width,), math.log(math.expm1(1 - lambda_lower_bound))))
        self.q_conv1d = CausalConv1d(width, conv_size, bias=False, activation="silu")
        self.k_conv1d = CausalConv1d(width, conv_size, bias=False, activation="silu")
        self.g_proj = Linear(d_model, width, bias=False) if use_gate else None
        self.o_norm = RMSNorm(head_dim, norm_eps)
        self.o_proj = Linear(width, d_model, bias=False)

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: MesaState | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        if timeline is not None:
            timeline = timeline.without_interval(type(self).__name__)
        x = hide(x, timeline)
        q, q_tail = self.q_conv1d(self.q_proj(x), timeline, state=None if state is None else state.q)
        k, k_tail = self.k_conv1d(self.k_proj(x), timeline, state=None if state is None else state.k)
        a, b = self.a_proj(x), self.b_proj(x)
        dtype = state_dtype(a)
        y, (g, s) = mesa(
            unit(q.unflatten(-1, self.heads)), unit(k.unflatten(-1, self.heads)), self.v_proj(x).unflatten(-1, self.heads),
            torch.sigmoid(b.to(dtype)), F.logsigmoid(a.to(dtype)), self.ridge(), iterations=self.iterations,
            state=None if state is None else (state.g, state.s), timeline=timeline, return_state=True,
        )  # fmt: skip
        y = self.o_norm(y).flatten(-2)
        y = hide(self.o_proj(y if self.g_proj is None else y * F.silu(self.g_proj(x))), timeline)
        return (y, MesaState(q_tail, k_tail, g, s)) if return_state else y

    def ridge(self) -> Tensor:
        """(H, head width), positive."""
        return (F.softplus(self.lambda_params) + self.lambda_lower_bound).view(self.heads)

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> MesaState:
        """Zeros."""
        heads, width = self.heads
        tail, memory = (batch_size, self.conv_size - 1, heads * width), (batch_size, heads, width, width)
        return MesaState(*(zeros_for(self.o_proj.weight, device, *shape) for shape in (tail, tail, memory, memory)))
