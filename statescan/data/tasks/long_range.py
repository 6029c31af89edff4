"""Two tasks of the Long Range Arena, generated at any size: ListOps and Pathfinder (Tay et al. 2020, https://arxiv.org/abs/2011.04006)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from statescan.data.tasks.base import ClassRows, ClassTask, class_rows, require
from statescan.registry import register

OPERATORS = ("[MAX", "[MIN", "[MED", "[SM")
_PAD, _END, _FIRST = 10, 11, 12
Place = tuple[int, int]


@register
@dataclass(frozen=True)
class ListOps(ClassTask):
    """Nested operations on digits: ``[MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]`` is 5, the row's class.

    The grammar of Nangia and Bowman 2018 (https://arxiv.org/abs/1804.06028): a node is an operation with probability 1/4, of 2 to
    ``max_args`` arguments; the operations are maximum, minimum, median (rounded down) and sum modulo 10. Expressions are drawn until
    one has min_length to max_length symbols, and stand at the right of their rows. (The Long Range Arena has max_args and max_depth 10.)

    Ids: 0-9 digits, 10 padding, 11 ``]``, 12-15 the operations.
    """

    min_length: int = 100
    max_length: int = 300
    max_args: int = 5
    max_depth: int = 20

    vocab_size = _FIRST + len(OPERATORS)
    num_classes = 10

    def __post_init__(self) -> None:
        require(
            4 <= self.min_length <= self.max_length, f"expected 4 <= min_length <= max_length; got {self.min_length} and {self.max_length}"
        )
        require(
            self.max_args >= 2 and self.max_depth >= 2, f"max_args and max_depth must be at least 2; got {self.max_args}, {self.max_depth}"
        )

    def draw(self, rows: int, rng: np.random.Generator) -> ClassRows:  # type: ignore[override]
        ids = np.full((rows, self.max_length), _PAD)
        labels = np.empty(rows)
        chance = uniform(rng)
        for row in range(rows):
            symbols: list[int] = []
            while len(symbols) < self.min_length:
                symbols = []
                if not self._grow(1, chance, symbols):
                    symbols = []  # it grew too long
            ids[row, self.max_length - len(symbols) :] = symbols
            labels[row] = evaluate(symbols)
        return class_rows(ids, labels)

    def _grow(self, depth: int, chance: Iterator[float], symbols: list[int]) -> bool:
        """Append a node; false as soon as the expression is too long. The first one is an operation."""
        if len(symbols) >= self.max_length:
            return False
        if depth > 1 and (depth >= self.max_depth or next(chance) > 0.25):
            symbols.append(int(10 * next(chance)))
            return True
        symbols.append(_FIRST + int(len(OPERATORS) * next(chance)))
        for _ in range(2 + int((self.max_args - 1) * next(chance))):
            if not self._grow(depth + 1, chance, symbols):
                return False
        symbols.append(_END)
        return len(symbols) <= self.max_length


def evaluate(symbols: list[int]) -> int:
    """The value of an expression of ids."""
    waiting: list[tuple[int, list[int]]] = []
    for symbol in symbols:
        if symbol >= _FIRST:
            waiting.append((symbol - _FIRST, []))
            continue
        if symbol == _END:
            operation, arguments = waiting.pop()
            symbol = (max(arguments), min(arguments), int(np.median(arguments)), sum(arguments) % 10)[operation]
        if not waiting:
            return symbol
        waiting[-1][1].append(symbol)
    raise ValueError("the expression is not closed")


@register
@dataclass(frozen=True)
class Pathfinder(ClassTask):
    """Two winding paths and two marks: do the marks lie at the ends of one path? A pixel a position, row by row.

    After Linsley et al. 2018 (https://arxiv.org/abs/1805.08315), drawn anew: paths turn smoothly, have gaps of one pixel, and keep
    ``margin`` pixels between them; shorter ones without marks distract. Half of the pictures are positive.

    Ids: 0 ground, 1 path, 2 mark. Classes: 0 no, 1 yes.
    """

    size: int = 16
    path_length: int = 12
    gap_every: int = 4
    distractors: int = 2
    margin: int = 2

    vocab_size = 3
    num_classes = 2

    def __post_init__(self) -> None:
        require(self.size >= 8, f"size must be at least 8; got {self.size}")
        require(4 <= self.path_length <= 2 * self.size, f"path_length must lie in 4..{2 * self.size}; got {self.path_length}")
        require(self.gap_every >= 3 and self.margin >= 2, f"gap_every must be at least 3, margin 2; got {self.gap_every}, {self.margin}")
        require(self.distractors >= 0, f"distractors must be 0 or more; got {self.distractors}")

    def draw(self, rows: int, rng: np.random.Generator) -> ClassRows:  # type: ignore[override]
        chance = uniform(rng)
        pictures, same = zip(*(self.picture(chance) for _ in range(rows)), strict=True)
        return class_rows(np.stack(pictures).reshape(rows, -1), np.array(same))

    def picture(self, chance: Iterator[float]) -> tuple[np.ndarray, bool]:
        """(pixels (size, size), whether the marks lie on one path)."""
        while True:
            taken: set[Place] = set()
            paths = [self._path(self.path_length, taken, chance) for _ in range(2)]
            if not all(paths):
                continue
            first, second = paths
            distractors = [self._path(self.path_length // 2, taken, chance) for _ in range(self.distractors)]  # as many as find a place
            picture = np.zeros((self.size, self.size), np.int64)
            for path in (*distractors, first, second):
                for i, place in enumerate(path):
                    if i % self.gap_every != self.gap_every - 1 or i == len(path) - 1:
                        picture[place] = 1
            same = next(chance) < 0.5
            chosen = first if next(chance) < 0.5 else second
            ends = (chosen[0], chosen[-1]) if same else (first[-int(2 * next(chance))], second[-int(2 * next(chance))])
            for place in ends:
                picture[place] = 2
            return picture, same

    def _path(self, length: int, taken: set[Place], chance: Iterator[float]) -> list[Place]:
        """Pixels of a smooth path that keeps its distance; they are then taken, with a margin. Empty if it finds no room in some tries."""
        for _ in range(40):
            y, x = self.size * next(chance), self.size * next(chance)
            heading, turn = 2 * math.pi * next(chance), 0.0
            places: list[Place] = []
            while len(places) < length:
                place = (int(y), int(x))
                if not (0 <= y < self.size and 0 <= x < self.size) or place in taken:
                    break
                if place not in places:
                    if any(max(abs(a - place[0]), abs(b - place[1])) < 2 for a, b in places[:-2]):  # it would touch itself
                        break
                    places.append(place)
                turn = min(0.35, max(-0.35, turn + 0.15 * normal(chance)))
                heading += turn
                y, x = y + math.sin(heading), x + math.cos(heading)
            if len(places) == length:
                near = range(-self.margin, self.margin + 1)
                taken.update((a + i, b + j) for a, b in places for i in near for j in near)
                return places
        return []


def uniform(rng: np.random.Generator) -> Iterator[float]:
    """Numbers in [0, 1), drawn many at a time: one by one a generator of NumPy's is slow."""
    while True:
        yield from rng.random(4096).tolist()


def normal(chance: Iterator[float]) -> float:
    """Of unit variance (Box and Muller)."""
    return math.sqrt(-2 * math.log(1 - next(chance))) * math.cos(2 * math.pi * next(chance))
