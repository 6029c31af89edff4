"""SpaceTime: forecasts of time series by companion systems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from statescan.heads.forecast import ClosedLoopForecast
from statescan.heads.windowed import WindowForecaster
from statescan.mixers.companion import Companion, CompanionState
from statescan.mixers.shift import SeriesFilters, TapsState
from statescan.parameters import parameter_groups
from statescan.registry import Family, register, register_model
from statescan.spec import Spec
from statescan.state import map_tensors
from statescan.state import state as declare_state
from statescan.timeline import Timeline

FAMILY = Family(
    name="spacetime",
    introduces=("Companion", "ClosedLoopCompanion"),
    title="Effectively Modeling Time Series with Simple Discrete State Spaces",
    url="https://arxiv.org/abs/2303.09489",
    bibtex="""@inproceedings{zhang2023spacetime,
  title={Effectively Modeling Time Series with Simple Discrete State Spaces},
  author={Zhang, Michael and Saab, Khaled Kamal and Poli, Michael and Dao, Tri and Goel, Karan and R{\\'e}, Christopher},
  booktitle={International Conference on Learning Representations},
  year={2023}
}""",
    exact="Layers, wiring, initialisation, losses and parameter counts.",
    deviates="The lag state is driven by the same normalised b as the closed loop; the authors' code drives it by the raw one "
    "(`raw_lag_state=True` does). Kernels come from power series, which have a value where the published formula divides zero by zero.",
)


@declare_state
class SpaceTimeState(NamedTuple):
    """Float32; every tensor is (B, V, ...), one system a variable."""

    blocks: tuple[tuple[TapsState | tuple[()], CompanionState], ...]
    """Of the filters, where a block has some, and of the companion layer."""
    head: CompanionState


class Block(nn.Module):
    """A companion layer around which passes the input, or what the filters in front make of it."""

    def __init__(self, filters: SeriesFilters | None, mixer: Companion) -> None:
        super().__init__()
        self.filters, self.mixer = filters, mixer

    def forward(self, u: Tensor, timeline: Timeline | None, state: Any) -> tuple[Tensor, Any]:
        """(R, L, D) -> (R, L, D), and the state; an incoming one of None is the initial one."""
        tail, last = (None, None) if state is None else state
        if self.filters is not None:
            u, tail = self.filters(u, timeline, state=tail, return_state=True)
        y, last = self.mixer(u, timeline, state=last, return_state=True)
        return y + u, (() if self.filters is None else tail, last)

    def init_state(self, rows: int, device: torch.device | str | None) -> tuple[TapsState | tuple[()], CompanionState]:
        """Zeros."""
        tail = () if self.filters is None else self.filters.init_state(rows, device=device)
        return tail, self.mixer.init_state(rows, device=device)


@register
class SpaceTime(WindowForecaster):
    """Each of V variables by itself, through the same weights: repeated D times, filtered, encoded open loop, forecast closed loop.

    Args:
        d_input: variables, V; no parameter depends on it.
        d_model: width D of the encoder.
        d_state: length of every delay line, d.
        n_layers: encoder blocks.
        n_kernels: different systems in the first block; in the others each channel has its own.
        most: bound of the windows of the moving averages in front.
        dropout: in every block, and before the read-out.
        raw_lag_state: see the family's deviations.

    Calling it runs open loop under the contract of a causal mixer, (B, L, V) -> (B, L, V): at each position a forecast of the next.
    :meth:`forecast` is what the paper evaluates, :meth:`loss` what it trains.
    """

    def __init__(
        self,
        d_input: int = 1,
        d_model: int = 128,
        d_state: int = 64,
        n_layers: int = 1,
        n_kernels: int = 16,
        most: int = 64,
        dropout: float = 0.25,
        raw_lag_state: bool = False,
    ) -> None:
        super().__init__()
        if d_input < 1 or n_layers < 1:
            raise ValueError(f"d_input and n_layers must be positive; got {d_input} and {n_layers}")
        self.d_input, self.d_model, self.raw_lag_state = d_input, d_model, raw_lag_state
        self.blocks = nn.ModuleList(
            Block(None if i else SeriesFilters(d_model, most=most), Companion(d_model, d_state, None if i else n_kernels, dropout=dropout))
            for i in range(n_layers)
        )
        self.head = ClosedLoopForecast(d_model, 1, d_state, dropout)

    def encode(self, x: Tensor, timeline: Timeline | None = None, state: SpaceTimeState | None = None) -> tuple[Tensor, tuple[Any, ...]]:
        """Series (R, L) -> features (R, L, D), and the blocks' states."""
        u = x.unsqueeze(-1).expand(-1, -1, self.d_model)
        after = []
        for i, block in enumerate(self.blocks):
            u, last = block(u, timeline, None if state is None else state.blocks[i])
            after.append(last)
        return u, tuple(after)

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: SpaceTimeState | None = None,
        return_state: bool = False,
    ) -> Any:
        """(B, L, V) -> (B, L, V), open loop."""
        series, line = self._apart(x, timeline)
        inner = None if state is None else map_tensors(lambda t: t.flatten(0, 1), state)
        features, blocks = self.encode(series, line, inner)
        y, head = self.head(features, line, state=None if inner is None else inner.head, return_state=True)
        y = y.squeeze(-1).unflatten(0, (-1, self.d_input)).mT
        if not return_state:
            return y
        return y, map_tensors(lambda t: t.unflatten(0, (-1, self.d_input)), SpaceTimeState(blocks, head))

    def scan(self, x: Tensor, state: SpaceTimeState | None = None, timeline: Timeline | None = None) -> tuple[Tensor, SpaceTimeState]:
        """``(y, state)``: a chunk."""
        return self(x, timeline, state=state, return_state=True)  # type: ignore[no-any-return]

    def step(self, x: Tensor, state: SpaceTimeState, timeline: Timeline | None = None) -> tuple[Tensor, SpaceTimeState]:
        """One position: x (B, V)."""
        y, state = self.scan(x.unsqueeze(1), state, None if timeline is None else timeline.as_sequence())
        return y.squeeze(1), state

    def init_state(self, batch_size: int, *, device: torch.device | str | None = None) -> SpaceTimeState:
        """Zeros."""
        rows = batch_size * self.d_input
        blocks = tuple(block.init_state(rows, device) for block in self.blocks)  # type: ignore[operator]
        state = SpaceTimeState(blocks, self.head.mixer.init_state(rows, device=device))
        return map_tensors(lambda t: t.unflatten(0, (batch_size, self.d_input)), state)

    def forecast(self, x: Tensor, horizon: int) -> Tensor:
        """The past (B, L, V) -> its next values (B, horizon, V), closed loop. The past's mean is taken off before and added after."""
        series, mean = self._centred(x)
        features = self.encode(series)[0]
        return self._roll(self.head.mixer.scan(features)[1], horizon) + mean

    def loss(self, x: Tensor, y: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0)) -> Tensor:
        """The weighted sum of three RMSE, for a past x (B, L, V), L > d, and what came after it, y (B, H, V).

        Of the closed-loop forecast of y; of the open-loop forecast of each next value of x, and the first of y, once the delay line is
        full; and of what the last layer expects of its next input. NaN in y does not count.
        """
        if x.shape[1] <= self.head.mixer.d_state:
            raise ValueError(f"the past must be longer than the delay line, {self.head.mixer.d_state} positions; got {x.shape[1]}")
        series, mean = self._centred(x)
        features = self.encode(series)[0]
        first = self.head.mixer.d_state
        expected = self.head.next_input_loss(features)
        following = torch.cat([x, y[:, :1]], 1)[:, first:] - mean
        ahead, state = self.head(features, return_state=True)
        ahead = ahead[:, first - 1 :].squeeze(-1).unflatten(0, (-1, self.d_input)).mT
        closed, wanted = self._roll(state, y.shape[1]), y - mean
        if wanted.isnan().any():
            closed, wanted = closed[~wanted.isnan()], wanted[~wanted.isnan()]
            ahead, following = ahead[~following.isnan()], following[~following.isnan()]
        known = self.head.loss(closed, wanted) if len(wanted) else 0.0
        return weights[0] * known + weights[1] * self.head.loss(ahead, following) + weights[2] * expected

    def parameter_groups(self, weight_decay: float = 1e-4, lr: float | None = None) -> list[dict[str, Any]]:
        """Optimiser groups: dynamics and biases without weight decay."""
        return parameter_groups(self, weight_decay=weight_decay, lr=lr)

    def _roll(self, state: CompanionState, horizon: int) -> Tensor:
        if self.raw_lag_state:
            state = CompanionState(state.x * self.head.mixer.b.abs().sum(-1, keepdim=True))
        return self.head.forecast(state, horizon).squeeze(-1).unflatten(0, (-1, self.d_input)).mT

    def _centred(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Series (B V, L) without their mean, and the mean (B, 1, V)."""
        mean = x.mean(1, keepdim=True)
        return self._apart(x - mean, None)[0], mean

    def _apart(self, x: Tensor, timeline: Timeline | None) -> tuple[Tensor, Timeline | None]:
        """(B, L, V) and its timeline -> one row a variable."""
        if x.ndim != 3 or x.shape[2] != self.d_input:
            raise ValueError(f"x must have shape (batch, length, {self.d_input}); got {tuple(x.shape)}")
        line = None if timeline is None else timeline.expand(*x.shape[:2]).repeat_interleave(self.d_input)
        return x.mT.flatten(0, 1), line


for _layers, _count in ((1, 52_737), (2, 93_953)):
    register_model(f"spacetime-{_layers}", Spec(SpaceTime, n_layers=_layers), family=FAMILY, parameters=_count)

register_model(
    "spacetime-tiny", Spec(SpaceTime, d_input=2, d_model=8, d_state=3, n_layers=2, n_kernels=4, most=6), family=FAMILY, tiny=True
)
