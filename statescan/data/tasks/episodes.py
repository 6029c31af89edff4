"""Episodes in a row: memory that must be emptied between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from statescan.data.tasks.base import Examples, Task, examples, require
from statescan.registry import register
from statescan.timeline import Timeline


class Timed(NamedTuple):
    """Examples whose timeline the model is given."""

    examples: Examples
    timeline: Timeline | None

    @property
    def ids(self) -> Tensor:
        """(B, L)."""
        return self.examples.ids

    @property
    def targets(self) -> Tensor:
        """(B, L)."""
        return self.examples.targets

    def to(self, device: torch.device | str) -> Timed:
        """On another device."""
        line = self.timeline
        return Timed(self.examples.to(device), None if line is None else line._map(lambda field: field.to(device)))

    def take(self, rows: Tensor) -> Timed:
        """Some of the rows."""
        line = self.timeline
        return Timed(self.examples.take(rows), None if line is None else line._map(lambda field: field[rows]))

    def loss(self, model: nn.Module) -> Tensor:
        """The model's."""
        return model.loss(model(self.ids, self.timeline), self.targets)  # type: ignore[operator, no-any-return]

    def score(self, model: nn.Module) -> tuple[float, float]:
        """(right answers, questions)."""
        return self.examples.right(model(self.ids, self.timeline).argmax(-1))


@register
@dataclass(frozen=True)
class RepeatFirst(Task):
    """Episodes of random lengths, one behind the other: at every position the first observation of its episode is asked for.

    Nothing in an observation says that an episode begins: only a reset of the state does (Lu et al. 2023,
    https://arxiv.org/abs/2303.03982; after POPGym, Morad et al. 2023). With ``resets=False`` the same model is not told.
    """

    length: int = 64
    least: int = 4
    most: int = 24
    vocab_size: int = 4
    resets: bool = True

    def __post_init__(self) -> None:
        require(1 <= self.least <= self.most <= self.length, f"1 <= least <= most <= length; got {self.least}, {self.most}, {self.length}")
        require(self.vocab_size >= 2, f"vocab_size must be 2 or more; got {self.vocab_size}")

    @property
    def chance(self) -> float:
        return 1 / self.vocab_size

    def draw(self, rows: int, rng: np.random.Generator) -> Timed:  # type: ignore[override]
        ids = rng.integers(self.vocab_size, size=(rows, self.length))
        reset = np.zeros((rows, self.length), np.bool_)
        targets = np.empty_like(ids)
        for row in range(rows):
            start = 0
            while start < self.length:
                stop = min(self.length, start + int(rng.integers(self.least, self.most + 1)))
                reset[row, start] = True
                targets[row, start:stop] = ids[row, start]
                start = stop
        return Timed(examples(ids, targets), Timeline(torch.from_numpy(reset)) if self.resets else None)
