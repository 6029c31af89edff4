"""The obviously right ways to run a layer, and the timelines on which every other way must agree with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from statescan import state as states
from statescan.state import State
from statescan.testing.compare import Path
from statescan.testing.subject import Mode, Subject
from statescan.timeline import Timeline


@dataclass(frozen=True)
class Scenario:
    """A batch of sequences: its size, its timeline, and whether it continues a state."""

    name: str
    batch: int
    length: int
    timeline: Timeline | None = None
    warm: bool = False

    def __str__(self) -> str:
        return f"{self.name}, B={self.batch} L={self.length}{', continuing a state' if self.warm else ''}"

    def inputs(self, subject: Subject, dtype: torch.dtype) -> Tensor:
        """Random inputs, poisoned where positions do not exist."""
        x = subject.inputs(self.batch, self.length, dtype)
        return x if self.timeline is None or self.timeline.mask is None else subject.poison(x, self.timeline.mask)

    def state(self, subject: Subject, dtype: torch.dtype) -> State | None:
        return subject.warm_state(subject.at(dtype), self.batch) if self.warm else None


# -- paths ------------------------------------------------------------------------------------------------------------------


def whole(subject: Subject, module: nn.Module) -> Path:
    """One call."""
    return lambda x, timeline, state: subject.call(module, x, timeline, state)


def chunks(subject: Subject, module: nn.Module, sizes: Sequence[int], modes: Sequence[Mode] = ()) -> Path:
    """One call a chunk, the state handed on; ``modes`` gives each chunk an implementation of its own (the last one stays)."""

    def path(x: Tensor, timeline: Timeline | None, state: State | None) -> tuple[Tensor, State]:
        outputs, start = [], 0
        for i, size in enumerate(sizes):
            line = None if timeline is None else timeline.slice(start, start + size)
            if modes:
                with modes[min(i, len(modes) - 1)].active():
                    y, state = subject.call(module, x[:, start : start + size], line, state)
            else:
                y, state = subject.call(module, x[:, start : start + size], line, state)
            outputs.append(y)
            start += size
        assert start == x.shape[1], "the chunk sizes must add up to the length"
        return torch.cat(outputs, 1), state

    return path


def steps(subject: Subject, module: nn.Module, prefill: int = 0, prefill_mode: Mode | None = None) -> Path:
    """``step`` at every position, after an optional prefill of some positions at once (under an implementation of its own)."""

    def path(x: Tensor, timeline: Timeline | None, state: State | None) -> tuple[Tensor, State]:
        outputs = []
        if prefill:
            line = None if timeline is None else timeline.slice(0, prefill)
            if prefill_mode is not None:
                with prefill_mode.active():
                    y, state = subject.call(module, x[:, :prefill], line, state)
            else:
                y, state = subject.call(module, x[:, :prefill], line, state)
            outputs = [y]
        elif state is None:
            state = subject.init_state(module, x.shape[0])
        for t in range(prefill, x.shape[1]):
            y, state = module.step(x[:, t], state, None if timeline is None else timeline.at(t))  # type: ignore[operator]
            outputs.append(y.unsqueeze(1))
        return torch.cat(outputs, 1), state

    return path


def apart(subject: Subject, module: nn.Module) -> Path:
    """Every document of every row by itself, with the positions that do not exist deleted; no reset and no mask ever reach the layer."""

    def path(x: Tensor, timeline: Timeline | None, state: State | None) -> tuple[Tensor, State | None]:
        line = (timeline or Timeline()).expand(x.shape[0], x.shape[1])
        outputs: list[list[Tensor | None]] = [[None] * x.shape[1] for _ in range(x.shape[0])]
        last: list[State] = []
        for row in range(x.shape[0]):
            current = subject.init_state(module, 1) if subject.causal else None
            if state is not None:
                current = states.select(state, [row])
            for from_reset, places in documents(line, row, x.shape[1]):
                if from_reset and subject.causal:
                    current = subject.init_state(module, 1)
                if not places:
                    continue
                index = torch.tensor(places)
                interval = line.interval
                if isinstance(interval, Tensor):
                    interval = interval[row : row + 1, index]
                alone = None if interval is None else Timeline(interval=interval)
                y, current = subject.call(module, x[row : row + 1, index], alone, current)
                for i, t in enumerate(places):
                    outputs[row][t] = y[0, i]
            last.append(current)
        zero = next(torch.zeros_like(y) for row in outputs for y in row if y is not None)
        y = torch.stack([torch.stack([zero if y is None else y for y in row]) for row in outputs])
        return y, states.concat(last) if subject.causal else None

    return path


def documents(line: Timeline, row: int, length: int) -> Iterator[tuple[bool, list[int]]]:
    """(whether a reset began it, the existing positions) of every document of a row, in order; a document may be empty."""
    places: list[int] = []
    from_reset = False
    for t in range(length):
        if line.reset is not None and bool(line.reset[row, t]):
            yield from_reset, places
            places, from_reset = [], True
        if line.mask is None or bool(line.mask[row, t]):
            places.append(t)
    yield from_reset, places


# -- timelines --------------------------------------------------------------------------------------------------------------


def _random(batch: int, length: int, probability: float, seed: int) -> Tensor:
    return torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) < probability


def _interval(batch: int, length: int, seed: int) -> Tensor:
    return torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) * 2 + 0.1


def chunk_scenarios(subject: Subject) -> list[Scenario]:
    """For laws 1 and 5: one position, odd and even lengths, one row and three, with everything that can stand on a timeline."""
    if not subject.timed:
        return [Scenario("one", 1, 1), Scenario("three", 3, 1)]
    reset, mask = _random(3, 11, 0.25, 1), _random(3, 11, 0.7, 2)
    found = [
        Scenario("plain", 1, 1),
        Scenario("plain", 1, 12, warm=subject.causal),
        Scenario("plain", 3, 11),
        Scenario("reset", 3, 11, Timeline(reset), warm=subject.causal),
        Scenario("mask", 3, 11, Timeline(mask=mask), warm=subject.causal),
    ]
    if subject.has_time:
        interval = _interval(3, 11, 3)
        found += [
            Scenario("interval 0.5", 1, 6, Timeline(interval=0.5)),
            Scenario("interval", 3, 11, Timeline(interval=interval)),
        ]
    line = Timeline(_random(2, 12, 0.25, 4), _random(2, 12, 0.7, 5), _interval(2, 12, 6) if subject.has_time else None)
    found += [
        Scenario("everything", 2, 12, line, warm=subject.causal),
        Scenario("reset", 1, 1, Timeline(torch.ones(1, 1, dtype=torch.bool)), warm=subject.causal),
    ]
    return found


def padding_scenarios(subject: Subject) -> list[Scenario]:
    """For law 2: packed rows, left and right padding, ragged rows, holes, and a reset on a position that does not exist."""
    if not subject.timed:
        return []
    length = 11
    at = torch.arange(length)
    left = torch.stack([at >= 4, at >= 0, at >= 10])
    right = torch.stack([at < 11, at < 5, at < 1])
    ragged = torch.stack([(at >= 2) & (at < 9), at >= 5, at < 0])
    holes = _random(3, length, 0.6, 7)
    reset = _random(3, length, 0.3, 8)
    early = torch.zeros(3, length, dtype=torch.bool)
    early[:, 4] = True
    hidden = torch.ones(3, length, dtype=torch.bool)
    hidden[:, 4:6] = False
    trailing = torch.zeros(3, length, dtype=torch.bool)
    trailing[:, length - 2] = True
    warm = subject.causal
    found = [
        Scenario("packed", 1, 9, Timeline.packed([4, 1, 4])),
        Scenario("packed rows of several lengths", 2, 10, Timeline.packed([[3, 7], [5, 2, 1]])),
        Scenario("packed behind a state", 3, length, Timeline(reset), warm=warm),
        Scenario("left-padded", 3, length, Timeline.padded(left), warm=warm),
        Scenario("right-padded", 3, length, Timeline.padded(right)),
        Scenario("ragged, with a row of nothing", 3, length, Timeline.padded(ragged), warm=warm),
        Scenario("holes", 3, length, Timeline.padded(holes)),
        Scenario("holes and resets", 3, length, Timeline(reset, holes), warm=warm),
        Scenario("reset on a missing position", 3, length, Timeline(early, hidden), warm=warm),
        Scenario("reset on the missing last positions", 3, length, Timeline(trailing, at.expand(3, -1) < length - 2), warm=warm),
    ]
    if subject.has_time:
        # Time never passes at a position that does not exist, whatever stands there.
        interval = torch.where(holes, _interval(3, length, 9), torch.tensor(1e3))
        found += [
            Scenario("interval", 3, length, Timeline(interval=_interval(3, length, 10))),
            Scenario("holes, resets and interval", 3, length, Timeline(reset, holes, interval), warm=warm),
        ]
    return found
