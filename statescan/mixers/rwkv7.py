"""RWKV-7: time mixing by a generalised delta rule, and the channel mixing that stands in for an MLP.

Paper: Peng et al., "RWKV-7 'Goose' with Expressive Dynamic State Evolution", 2025, https://arxiv.org/abs/2503.14456. Parameter names and
shapes are those of the released checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.layers.linear import Linear
from statescan.mixers.gla import zeros_for
from statescan.ops import causal_conv1d, delta_rule
from statescan.ops.checks import check_positive, state_dtype
from statescan.protocols import Bus, CausalMixer
from statescan.registry import register
from statescan.state import state as declare_state
from statescan.timeline import Timeline, hide


@declare_state
class RWKV7State(NamedTuple):
    """Float32."""

    x: Tensor
    """(B, 1, D): the last existing input."""
    s: Tensor
    """(B, H, N, N): keys by values (the paper's matrix is its transpose)."""


@declare_state
class ShiftState(NamedTuple):
    """Float32."""

    x: Tensor
    """(B, 1, D): the last existing input."""


@register
class RWKV7TimeMix(CausalMixer):
    """With the token shift x_c = x_t + c * (x_{t-1} - x_t) for each of c = x_r, x_w, x_k, x_v, x_a, x_g, per head of N channels::

        r, k, v = receptance(x_r), key(x_k), value(x_v)
        w = exp(-e^{-1/2} sigmoid(w0 + tanh(x_w w1) w2)),   a = sigmoid(a0 + x_a a1 a2),   g = sigmoid(x_g g1) g2
        v = v + (v_first - v) sigmoid(v0 + x_v v1 v2)          v_first: the values of the first layer
        c = k * k_k / |k * k_k|,   k = k (1 + (a - 1) k_a)
        S_t = (Diag(w) - (a * c) c^T) S_{t-1} + k v^T                              2 a * c with allow_neg_eigval
        y = output((GroupNorm(S_t^T r) + (r * k * r_k summed) v) * g)

    Args:
        d_model: width D.
        head_dim: N, a divisor of D.
        rank_w: rank of the decay.
        rank_a: rank of a.
        rank_v: rank of the value residual.
        rank_g: rank of the gate.
        allow_neg_eigval: the removal counts twice, so that the transition may have eigenvalues down to -1: not in the published models.
        first: the first layer of a model: it puts its values on the bus as ``v_first`` and has no v0, v1, v2; the others read them.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`RWKV7State`. Initial values of the shifts and of w0 spread over the channels; the
    published ones also depend on the depth.
    """

    dynamics = ("w0", "a0", "k_k", "k_a", "r_k")
    residual_outputs = ()  # the output starts at zero
    examples = (
        {"head_dim": 8, "rank_w": 4, "rank_a": 3, "rank_v": 2, "rank_g": 5},
        {"head_dim": 16, "rank_w": 2, "rank_a": 2, "rank_v": 2, "rank_g": 2, "allow_neg_eigval": True},
    )

    x_r: nn.Parameter
    x_w: nn.Parameter
    x_k: nn.Parameter
    x_v: nn.Parameter
    x_a: nn.Parameter
    x_g: nn.Parameter

    def __init__(
        self,
        d_model: int,
        head_dim: int = 64,
        rank_w: int = 64,
        rank_a: int = 64,
        rank_v: int = 32,
        rank_g: int = 128,
        first: bool = True,
        allow_neg_eigval: bool = False,
    ) -> None:
        super().__init__()
        check_positive(d_model=d_model, head_dim=head_dim, rank_w=rank_w, rank_a=rank_a, rank_v=rank_v, rank_g=rank_g)
        if d_model % head_dim:
            raise ValueError(f"head_dim must divide d_model; got {head_dim} and {d_model}")
        self.d_model, self.head_dim, self.first, self.allow_neg_eigval = d_model, head_dim, first, allow_neg_eigval
        if first:
            self.writes = ("v_first",)  # type: ignore[misc]  # what the class declares for all, an instance narrows
        else:
            self.reads = ("v_first",)  # type: ignore[misc]
        channel = torch.arange(d_model) / d_model
        for name, power in (("x_r", 0.2), ("x_w", 0.9), ("x_k", 0.7), ("x_v", 0.7), ("x_a", 0.9), ("x_g", 0.2)):
            setattr(self, name, nn.Parameter((1 - channel**power).view(1, 1, -1)))
        self.w0 = nn.Parameter((6 * channel - 6).view(1, 1, -1))
        self.w1, self.w2 = low_rank(d_model, rank_w)
        self.a0 = nn.Parameter(torch.zeros(1, 1, d_model))
        self.a1, self.a2 = low_rank(d_model, rank_a)
        self.g1, self.g2 = low_rank(d_model, rank_g)
        self.v0 = None if first else nn.Parameter(torch.ones(1, 1, d_model))
        self.v1: nn.Parameter | None = None
        self.v2: nn.Parameter | None = None
        if not first:
            self.v1, self.v2 = low_rank(d_model, rank_v)
        self.k_k = nn.Parameter(torch.full((1, 1, d_model), 0.71))
        self.k_a = nn.Parameter(torch.full((1, 1, d_model), 1.02))
        self.r_k = nn.Parameter(torch.full((d_model // head_dim, head_dim), -0.04))
        self.receptance = Linear(d_model, d_model, bias=False)
        self.key = Linear(d_model, d_model, bias=False)
        self.value = Linear(d_model, d_model, bias=False)
        self.output = Linear(d_model, d_model, bias=False)
        nn.init.zeros_(self.output.weight)
        self.ln_x = nn.GroupNorm(d_model // head_dim, d_model, eps=64e-5)

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: RWKV7State | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        if timeline is not None:
            timeline = timeline.without_interval(type(self).__name__)
        x = hide(x, timeline)
        back, tail = token_shift(x, timeline, None if state is None else state.x)
        x_r, x_w, x_k, x_v, x_a, x_g = (x + back * c for c in (self.x_r, self.x_w, self.x_k, self.x_v, self.x_a, self.x_g))
        dtype, heads = state_dtype(x), (-1, self.head_dim)
        r, k = self.receptance(x_r).unflatten(-1, heads), self.key(x_k).to(dtype)
        v = self._with_first(self.value(x_v), x_v, bus).unflatten(-1, heads)
        log_w = -math.exp(-0.5) * torch.sigmoid(self.w0 + (torch.tanh(x_w @ self.w1) @ self.w2).to(dtype))
        a = torch.sigmoid(self.a0 + (x_a @ self.a1 @ self.a2).to(dtype))
        removed = F.normalize((k * self.k_k).unflatten(-1, heads), dim=-1)
        k = (k * (1 + (a - 1) * self.k_a)).unflatten(-1, heads)
        taken = removed * (2 * a if self.allow_neg_eigval else a).unflatten(-1, heads)
        y, s = delta_rule(
            r, torch.stack([taken, k], dim=2), torch.stack([torch.zeros_like(v), v], dim=2),
            log_decay=log_w.unflatten(-1, heads), read=torch.stack([removed, torch.zeros_like(removed)], dim=2), scale=1.0,
            state=None if state is None else state.s, timeline=timeline, return_state=True,
        )  # fmt: skip
        y = self.ln_x(y.flatten(-2).flatten(0, 1)).view(x.shape)
        bonus = ((r * k * self.r_k).sum(-1, keepdim=True) * v).flatten(-2)
        gate = torch.sigmoid(x_g @ self.g1) @ self.g2
        y = hide(self.output(((y + bonus) * gate).to(v.dtype)), timeline)
        return (y, RWKV7State(tail, s)) if return_state else y

    def _with_first(self, v: Tensor, x_v: Tensor, bus: Bus | None) -> Tensor:
        """The value residual: the first layer's values are lent to the others."""
        if self.v0 is None or self.v1 is None or self.v2 is None:
            if bus is not None:
                bus["v_first"] = v
            return v
        if bus is None or "v_first" not in bus:
            raise ValueError("RWKV7TimeMix reads v_first from the bus: put one with first=True before it, or pass bus={'v_first': ...}")
        return v + (bus["v_first"] - v) * torch.sigmoid(self.v0 + x_v @ self.v1 @ self.v2)

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> RWKV7State:
        """Zeros."""
        weight, n = self.output.weight, self.head_dim
        return RWKV7State(
            zeros_for(weight, device, batch_size, 1, self.d_model), zeros_for(weight, device, batch_size, self.d_model // n, n, n)
        )


@register
class RWKV7ChannelMix(CausalMixer):
    """An MLP that sees the position before: ``y = value(relu(key(x_t + x_k * (x_{t-1} - x_t)))^2)``.

    Args:
        d_model: width D.
        hidden: inner width; None is 4 D.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`ShiftState`.
    """

    memory = 1
    residual_outputs = ()  # the output starts at zero
    examples = ({}, {"hidden": 24})

    def __init__(self, d_model: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = 4 * d_model if hidden is None else hidden
        check_positive(d_model=d_model, hidden=hidden)
        self.d_model = d_model
        self.x_k = nn.Parameter((1 - (torch.arange(d_model) / d_model) ** 4).view(1, 1, -1))
        self.key = Linear(d_model, hidden, bias=False)
        self.value = Linear(hidden, d_model, bias=False)
        nn.init.zeros_(self.value.weight)

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: ShiftState | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        if timeline is not None:
            timeline = timeline.without_interval(type(self).__name__)
        x = hide(x, timeline)
        back, tail = token_shift(x, timeline, None if state is None else state.x)
        y = hide(self.value(torch.relu(self.key(x + back * self.x_k)).square()), timeline)
        return (y, ShiftState(tail)) if return_state else y

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> ShiftState:
        """Zeros."""
        return ShiftState(zeros_for(self.value.weight, device, batch_size, 1, self.d_model))


def token_shift(x: Tensor, timeline: Timeline | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """x_{t-1} - x_t, where t-1 is the last position that exists (zeros before the first), and the last existing input (B, 1, D)."""
    taps = torch.stack([x.new_ones(x.shape[-1]), x.new_zeros(x.shape[-1])], dim=1)
    before, tail = causal_conv1d(x, taps, state=state, timeline=timeline, return_state=True)
    return before - x, tail.to(state_dtype(x))


def low_rank(width: int, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
    """(D, R) of zeros and (R, D) orthogonal times 0.1: a correction that starts at zero."""
    return nn.Parameter(torch.zeros(width, rank)), nn.Parameter(nn.init.orthogonal_(torch.empty(rank, width), gain=0.1))
