"""Formal languages, to be learned from examples in the context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from statescan.data.tasks.base import UNASKED, Examples, Task, examples, require
from statescan.registry import register


class Automaton(NamedTuple):
    """Where each letter leads from each state, int (states, letters); -1 where it leads nowhere. State 0 is the start; all accept."""

    edges: np.ndarray

    def accepts(self, word: list[int]) -> bool:
        """Every letter leads somewhere."""
        state = 0
        for letter in word:
            state = int(self.edges[state, letter])
            if state < 0:
                return False
        return True


def random_automaton(rng: np.random.Generator, letters: int) -> Automaton:
    """4 to 12 states over 4 to ``letters`` of the letters; from each state 1 to 3 edges with different letters to different other
    states. Unreachable states are dropped and equivalent ones merged."""
    states = int(rng.integers(4, 13))
    alphabet = rng.permutation(letters)[: rng.integers(4, letters + 1)]
    edges = np.full((states, letters), -1)
    for state in range(states):
        n = int(rng.integers(1, 4))
        others = np.delete(np.arange(states), state)
        edges[state, rng.permutation(alphabet)[:n]] = rng.permutation(others)[:n]
    return Automaton(_minimal(edges))


def _minimal(edges: np.ndarray) -> np.ndarray:
    reached, stack = {0}, [0]
    while stack:
        for target in edges[stack.pop()]:
            if target >= 0 and int(target) not in reached:
                reached.add(int(target))
                stack.append(int(target))
    kept = sorted(reached)
    # Moore: states stay together as long as the same letters lead from them to the same classes.
    classes = dict.fromkeys(kept, 0)
    while True:
        signatures = {s: (classes[s], tuple(classes[int(t)] if t >= 0 else -1 for t in edges[s])) for s in kept}
        names = {signature: i for i, signature in enumerate(dict.fromkeys(signatures.values()))}
        finer = {s: names[signatures[s]] for s in kept}
        if len(names) == len(set(classes.values())):
            break
        classes = finer
    first = {finer[s]: s for s in reversed(kept)}  # state 0 comes first, so its class is 0
    return np.array([[finer[int(t)] if t >= 0 else -1 for t in edges[first[c]]] for c in range(len(first))])


@register
@dataclass(frozen=True)
class InContextLanguage(Task):
    """In-context language learning (Akyürek et al. 2024, https://arxiv.org/abs/2401.12973).

    Each row has an automaton of its own (:func:`random_automaton`) and shows words that it accepts: uniform random walks from the start,
    of 1 to ``longest`` letters, joined by a separator (id 0; letters are 1..letters), up to ``length``. Every letter is asked for, the
    separator is not; an answer is right when the automaton has an edge for it.
    """

    length: int = 256
    letters: int = 18
    longest: int = 49

    def __post_init__(self) -> None:
        require(self.letters >= 4, f"letters must be 4 or more; got {self.letters}")
        require(self.length >= 2 and self.longest >= 1, f"length must be 2 or more, longest positive; got {self.length}, {self.longest}")

    @property
    def vocab_size(self) -> int:  # type: ignore[override]
        return self.letters + 1

    @property
    def chance(self) -> float:
        return 2 / self.letters  # two edges on average

    def draw(self, rows: int, rng: np.random.Generator) -> Examples:
        ids = np.zeros((rows, self.length), np.int64)
        allowed = np.zeros((rows, self.length, self.vocab_size), np.bool_)
        for row in range(rows):
            edges = random_automaton(rng, self.letters).edges
            out = [np.flatnonzero(state >= 0) for state in edges]
            state, left = 0, 0
            luck = rng.random(self.length)
            for t in range(self.length):
                if left:
                    letter = out[state][int(luck[t] * len(out[state]))]
                    ids[row, t], state, left = 1 + letter, edges[state, letter], left - 1
                else:  # a separator: the next word
                    state, left = 0, int(rng.integers(1, self.longest + 1))
                allowed[row, t, 1 + out[state]] = True
        targets = np.full_like(ids, UNASKED)
        targets[:, :-1] = np.where(ids[:, 1:] > 0, ids[:, 1:], UNASKED)
        return examples(ids, targets, allowed)
