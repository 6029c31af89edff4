"""RWKV-4: time mixing by a weighted mean over the past, and the channel mixing that stands in for an MLP.

Paper: Peng et al., "RWKV: Reinventing RNNs for the Transformer Era", 2023, https://arxiv.org/abs/2305.13048. Parameter names and shapes are
those of transformers' checkpoints.
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
from statescan.mixers.rwkv7 import ShiftState, token_shift
from statescan.ops import causal_conv1d, diagonal_scan
from statescan.ops.checks import check_positive, state_dtype
from statescan.protocols import Bus, CausalMixer
from statescan.registry import register
from statescan.state import state as declare_state
from statescan.timeline import Timeline, hide

EMPTY = -1e3
"""Logarithm of the weight of an empty past: its exponential is zero in every precision. Keys lie far above it."""
LIFT = 2.0**32
"""More than two keys lie apart."""


@declare_state
class RWKV4State(NamedTuple):
    """Float32."""

    x: Tensor
    """(B, 1, D): the last existing input."""
    mean: Tensor
    """(B, W): the mean of the values so far."""
    log_weight: Tensor
    """(B, W): logarithm of the sum of their weights."""


@register
class RWKV4TimeMix(CausalMixer):
    """With the token shift x_c = c * x_t + (1 - c) * x_{t-1} for each of c = time_mix_key, time_mix_value, time_mix_receptance::

        k, v, r = key(x_k), value(x_v), sigmoid(receptance(x_r)),   w = exp(time_decay),   u = time_first
        wkv_t = (sum_{i<t} e^{k_i - (t-1-i) w} v_i + e^{u + k_t} v_t) / (the same sum without the values)
        y = output(r * wkv)

    The sums are kept as the mean of the values and the logarithm s of their weights, which no key can make overflow::

        s_t = log(e^{s_{t-1} - w} + e^{k_t}),   mean_t = e^{s_{t-1} - w - s_t} mean_{t-1} + e^{k_t - s_t} v_t
        wkv_t = mean_{t-1} + sigmoid(u + k_t - s_{t-1}) (v_t - mean_{t-1})

    Args:
        d_model: width D.
        width: of keys, values and receptances, W; None is D.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`RWKV4State`. Initial values spread over the channels; the published ones also depend on
    the depth.
    """

    dynamics = ("time_decay", "time_first")
    residual_outputs = ("output",)
    examples = ({"width": 20},)

    def __init__(self, d_model: int, width: int | None = None) -> None:
        super().__init__()
        width = d_model if width is None else width
        check_positive(d_model=d_model, width=width)
        self.d_model, self.width = d_model, width
        channel = (torch.arange(d_model) / d_model).view(1, 1, -1)
        self.time_decay = nn.Parameter(8 * (torch.arange(width) / max(width - 1, 1)) ** 0.7 - 5)
        self.time_first = nn.Parameter(math.log(0.3) + 0.5 * ((torch.arange(width) + 1) % 3 - 1))
        self.time_mix_key = nn.Parameter(channel.clone())
        self.time_mix_value = nn.Parameter(channel.clone())
        self.time_mix_receptance = nn.Parameter(channel.sqrt())
        self.key = Linear(d_model, width, bias=False)
        self.value = Linear(d_model, width, bias=False)
        self.receptance = Linear(d_model, width, bias=False)
        self.output = Linear(width, d_model, bias=False)

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: RWKV4State | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        if timeline is not None:
            timeline = timeline.without_interval(type(self).__name__)
        x = hide(x, timeline)
        state = self.init_state(x.shape[0], device=x.device) if state is None else state
        back, tail = token_shift(x, timeline, state.x)
        mixes = (self.time_mix_key, self.time_mix_value, self.time_mix_receptance)
        x_k, x_v, x_r = (x + back * (1 - c) for c in mixes)
        v = self.value(x_v)
        wkv, mean, log_weight = self.recur(self.key(x_k), v, timeline, state)
        y = hide(self.output(torch.sigmoid(self.receptance(x_r)) * wkv.to(v.dtype)), timeline)
        return (y, RWKV4State(tail, mean, log_weight)) if return_state else y

    def recur(self, k: Tensor, v: Tensor, timeline: Timeline | None, state: RWKV4State) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values (B, L, W) -> wkv, and the last mean and logarithm (B, W).

        Both sums, of weighted values and of weights, are divided by the largest weight so far, which is no part of the derivative.
        """
        dtype = state_dtype(v)
        k, v, w, start = hide(k.to(dtype), timeline), v.to(dtype), torch.exp(self.time_decay), state.log_weight
        before, after = peaks(k, w, timeline, start)
        decay, weight = torch.exp(hide(before - w - after, timeline)).unsqueeze(2), torch.exp(hide(k - after, timeline))
        one = torch.exp(start - start.detach())  # with the derivative of what came before
        first = torch.stack([state.mean * one, one], dim=1)
        sums, last = diagonal_scan(
            decay, torch.stack([weight * v, weight], dim=2), state=first, timeline=timeline, return_state=True
        )  # fmt: skip
        rows = sums.flatten(2)
        taps = torch.stack([rows.new_ones(2 * self.width), rows.new_zeros(2 * self.width)], dim=1)
        past = causal_conv1d(rows, taps, state=first.flatten(1).unsqueeze(1), timeline=timeline)
        assert isinstance(past, Tensor)
        mean, log_weight = divided(past.unflatten(2, (2, -1)), before)
        return mean + torch.sigmoid(self.time_first + k - log_weight) * (v - mean), *divided(last, after[:, -1])

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> RWKV4State:
        """Nothing seen."""
        weight = self.output.weight
        mean = zeros_for(weight, device, batch_size, self.width)
        return RWKV4State(zeros_for(weight, device, batch_size, 1, self.d_model), mean, mean + EMPTY)


def divided(sums: Tensor, peak: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of values and of weights (..., 2, W), both divided by e^peak -> the mean, and the logarithm of the sum of weights."""
    values, weights = sums.unbind(-2)
    seen = weights > 0
    weights = torch.where(seen, weights, 1.0)
    return values / weights, torch.where(seen, peak + weights.log(), EMPTY)


@torch.no_grad()
def peaks(k: Tensor, w: Tensor, timeline: Timeline | None, start: Tensor) -> tuple[Tensor, Tensor]:
    """The logarithm of the largest weight before each position, and behind it: keys (B, L, W), decays w (W,), and what came before.

    peak_t + w n_t, with n_t existing positions so far, is a cumulative maximum, so it needs no loop; float64 has room for w n_t. Each
    document is lifted so far above the one before it that nothing which came earlier is the largest. What is left of rounding does no
    harm: a sum may be divided by any number that is about as large.
    """
    batch, length = k.shape[:2]
    line = Timeline() if timeline is None else timeline.expand(batch, length)
    count = torch.ones(batch, length, dtype=torch.float64, device=k.device) if line.mask is None else line.mask.double()
    n = F.pad(count.cumsum(1), (1, 0)).unsqueeze(-1)
    terms = torch.cat([start.unsqueeze(1), k], dim=1).double().addcmul_(n, w)
    lift = None
    if line.reset is not None:
        lift = LIFT * line.segments().unsqueeze(-1).double()
        terms[:, 1:] += lift
    if line.mask is not None:
        terms[:, 1:].masked_fill_(~line.mask.unsqueeze(-1), -torch.inf)
    peak = terms.cummax(1).values.addcmul_(n, w, value=-1)
    if lift is None:
        peak = peak.to(k.dtype)
        return peak[:, :-1], peak[:, 1:]
    return (peak[:, :-1] - lift).to(k.dtype), (peak[:, 1:] - lift).to(k.dtype)


@register
class RWKV4ChannelMix(CausalMixer):
    """An MLP that sees the position before, behind a gate. With the token shift x_c of :class:`RWKV4TimeMix`::

        y = sigmoid(receptance(x_r)) * value(relu(key(x_k))^2)

    Args:
        d_model: width D.
        hidden: inner width; None is 4 D.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`ShiftState`.
    """

    memory = 1
    residual_outputs = ("value",)
    examples = ({"hidden": 24},)

    def __init__(self, d_model: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = 4 * d_model if hidden is None else hidden
        check_positive(d_model=d_model, hidden=hidden)
        self.d_model = d_model
        channel = (torch.arange(d_model) / d_model).view(1, 1, -1)
        self.time_mix_key = nn.Parameter(channel.clone())
        self.time_mix_receptance = nn.Parameter(channel.clone())
        self.key = Linear(d_model, hidden, bias=False)
        self.receptance = Linear(d_model, d_model, bias=False)
        self.value = Linear(hidden, d_model, bias=False)

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
        x_k, x_r = (x + back * (1 - c) for c in (self.time_mix_key, self.time_mix_receptance))
        y = hide(torch.sigmoid(self.receptance(x_r)) * self.value(torch.relu(self.key(x_k)).square()), timeline)
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
