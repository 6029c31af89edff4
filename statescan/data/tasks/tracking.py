"""State tracking: the running product of a group's elements, on longer words than were trained on.

Only the positions beyond the trained length count in a longer test.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from statescan.data.tasks.base import UNASKED, Examples, Task, examples, require
from statescan.registry import register


class _Words(Task):
    """Words over a finite group; at every position from ``start`` on the product of all elements so far is asked for."""

    length: int
    test_lengths: tuple[int, ...]
    start: int

    @abstractmethod
    def multiplication(self) -> np.ndarray:
        """(V, V): the id of "first b, then a" in row a, column b. Id 0 is the neutral element."""

    def __post_init__(self) -> None:
        require(0 <= self.start < self.length, f"start must lie in 0..length-1; got {self.start} and {self.length}")
        require(
            all(n > self.length for n in self.test_lengths),
            f"test_lengths must be longer than length={self.length}; got {self.test_lengths}",
        )

    @property
    def chance(self) -> float:
        return 1 / self.vocab_size

    def tests(self) -> Mapping[str, Task]:
        longer = {
            f"positions {self.length + 1}-{n}": replace(self, length=n, start=self.length, test_lengths=())  # type: ignore[type-var]
            for n in self.test_lengths
        }
        return {f"length {self.length}": self, **longer}

    def draw(self, rows: int, rng: np.random.Generator) -> Examples:
        product = self.multiplication()
        ids = rng.integers(self.vocab_size, size=(rows, self.length))
        targets, state = np.empty_like(ids), np.zeros(rows, np.int64)
        for t in range(self.length):
            state = product[ids[:, t], state]
            targets[:, t] = state
        targets[:, : self.start] = UNASKED
        return examples(ids, targets)


@register
@dataclass(frozen=True)
class Parity(_Words):
    """Parity of the ones so far: the group of two elements.

    A linear recurrence whose transitions have positive eigenvalues cannot (Grazzi et al. 2024, https://arxiv.org/abs/2411.12537).
    """

    length: int = 40
    test_lengths: tuple[int, ...] = (160,)
    start: int = 0

    vocab_size = 2

    def multiplication(self) -> np.ndarray:
        return np.array([[0, 1], [1, 0]])


@register
@dataclass(frozen=True)
class Permutation(_Words):
    """The word problem of the symmetric group of ``items`` things: which permutation have the permutations so far made?

    From five items on it is complete for NC1, out of reach of a diagonal recurrence of any fixed depth (Merrill et al. 2024,
    https://arxiv.org/abs/2404.08819). An id is a permutation's place in lexicographic order; V = items!.
    """

    items: int = 3
    length: int = 20
    test_lengths: tuple[int, ...] = (80,)
    start: int = 0

    def __post_init__(self) -> None:
        require(2 <= self.items <= 6, f"items must lie in 2..6; got {self.items}")
        super().__post_init__()

    @property
    def vocab_size(self) -> int:  # type: ignore[override]
        return math.factorial(self.items)

    def multiplication(self) -> np.ndarray:
        all_ = np.array(list(itertools.permutations(range(self.items))))  # lexicographic
        place = {tuple(p): i for i, p in enumerate(all_.tolist())}
        return np.array([[place[tuple(a[b].tolist())] for b in all_] for a in all_])
