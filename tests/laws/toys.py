"""A small correct mixer on a small op of its own, from which the broken ones derive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.ops.dispatch import Op
from statescan.protocols import Bus, CausalMixer
from statescan.state import state as declare_state
from statescan.timeline import Timeline

op = Op("toy_scan", tolerance={torch.float64: 1e-10, torch.float32: 1e-5})


@op.implementation("reference")
def _reference(decay: Tensor, v: Tensor, state: Tensor, reset_to: Tensor, reset: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """h_t = decay_t h_{t-1} + (1 - decay_t) v_t, position by position."""
    h, outputs = state, []
    for t in range(v.shape[1]):
        h = torch.where(reset[:, t, None], reset_to, h)
        h = torch.where(mask[:, t, None], decay[:, t] * h + (1 - decay[:, t]) * v[:, t], h)
        outputs.append(torch.where(mask[:, t, None], h, 0.0))
    return torch.stack(outputs, 1), h


@op.implementation("portable")
def _portable(decay: Tensor, v: Tensor, state: Tensor, reset_to: Tensor, reset: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The same as one masked matrix product: weight[t, s] = prod of the decays after s up to t, within a document."""
    exists = mask[..., None]
    log_decay = torch.where(exists, decay, 1.0).log().cumsum(1)
    gained = torch.where(exists, (1 - decay) * v, 0.0)
    segment = reset.long().cumsum(1)
    here = torch.arange(v.shape[1], device=v.device)
    visible = (here[:, None] >= here) & (segment[:, :, None] == segment[:, None, :])
    gap = torch.where(visible[..., None], log_decay[:, :, None] - log_decay[:, None], float("-inf"))
    h = (gap.exp() * gained[:, None]).sum(2)
    # What a document starts from, seen through the decays since its first position.
    start = torch.where(reset, here, 0).cummax(1).values
    before = torch.cat([torch.zeros_like(log_decay[:, :1]), log_decay], 1)
    since = log_decay - before.gather(1, start[..., None].expand_as(log_decay))
    origin = torch.where((segment == 0)[..., None], state[:, None], reset_to[:, None])
    h = h + since.exp() * origin
    return torch.where(exists, h, 0.0), h[:, -1]


@declare_state
class ToyState(NamedTuple):
    h: Tensor  # (B, D) the running averages


class Toy(CausalMixer):
    """A gated running average with a learned start: delta_t = softplus(W x_t + dt_bias), decay_t = exp(-delta_t exp(A_log) interval_t)."""

    dynamics = ("A_log", "dt_bias", "h0")
    has_time = True
    holds_input = True

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(d_model, 2 * d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        self.A_log = nn.Parameter(torch.zeros(d_model))
        self.dt_bias = nn.Parameter(torch.zeros(d_model))
        self.h0 = nn.Parameter(torch.zeros(d_model))

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: ToyState | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        batch, length = x.shape[:2]
        line = (timeline or Timeline()).expand(batch, length)
        if state is None:
            state = self.init_state(batch)
        reset = x.new_zeros(batch, length, dtype=torch.bool) if line.reset is None else line.reset
        mask = x.new_ones(batch, length, dtype=torch.bool) if line.mask is None else line.mask
        x = torch.where(mask[..., None], x, 0.0)
        v, delta_raw = self.in_proj(x).chunk(2, -1)
        y, h = self.recur(*self.dynamics_of(v, delta_raw, line.interval), state.h, reset, mask)
        y = torch.where(mask[..., None], self.out_proj(y.to(x.dtype)), 0.0)
        return (y, ToyState(h)) if return_state else y

    def dynamics_of(self, v: Tensor, delta_raw: Tensor, interval: Tensor | float | None) -> tuple[Tensor, Tensor]:
        """(decay, v), in float32 at least."""
        delta = F.softplus(delta_raw.to(self.A_log.dtype) + self.dt_bias)
        if interval is not None:
            delta = delta * (interval.to(delta.dtype)[..., None] if isinstance(interval, Tensor) else interval)
        # Not below e^-60: the portable form takes the logarithm again.
        return (-delta * self.A_log.exp()).clamp(min=-60.0).exp(), v.to(delta.dtype)

    def recur(self, decay: Tensor, v: Tensor, h: Tensor, reset: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return op(decay=decay, v=v, state=h, reset_to=self.h0.expand_as(h), reset=reset, mask=mask)

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> ToyState:
        return ToyState(self.h0.expand(batch_size, -1).clone().to(device))
