"""Recall: bring back what was said once, by its key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from statescan.data.tasks.base import UNASKED, Examples, Task, distinct, examples, require
from statescan.registry import register


@register
@dataclass(frozen=True)
class MQAR(Task):
    """Multi-query associative recall (Zoology, Arora et al. 2023, https://arxiv.org/abs/2312.04927).

    ``k1 v1 k2 v2 ... `` then, among random tokens (or, without ``noise``, among zeros), every key once more: there its value is asked for.
    Keys are different ids of the lower half of the vocabulary (0 excluded), values different ids of the upper half. A key's second place
    is one of the even places behind the pairs, the g-th of them (g = 1, 2, ...) with weight g^(power - 1): soon rather than late.
    """

    vocab_size: int = 256
    length: int = 128
    pairs: int = 16
    power: float = 0.01
    noise: bool = True

    def __post_init__(self) -> None:
        require(
            self.length >= 4 * self.pairs > 0,
            f"MQAR needs two places for a pair, two for its query: length must be at least 4 * pairs; got {self.length} and {self.pairs}",
        )
        require(
            self.vocab_size // 2 - 1 >= self.pairs,
            f"MQAR draws {self.pairs} different keys from half the vocabulary: vocab_size must be at least {2 * self.pairs + 2}; "
            f"got {self.vocab_size}",
        )

    @property
    def chance(self) -> float:
        return 1 / (self.vocab_size - self.vocab_size // 2)

    def draw(self, rows: int, rng: np.random.Generator) -> Examples:
        half, stored = self.vocab_size // 2, 2 * self.pairs
        keys = 1 + distinct(rng, rows, half - 1, self.pairs)
        values = half + distinct(rng, rows, self.vocab_size - half, self.pairs)
        ids = self.noise * rng.integers(self.vocab_size, size=(rows, self.length))
        ids[:, 0:stored:2], ids[:, 1:stored:2] = keys, values
        # The largest of log-weight plus Gumbel noise: drawing without replacement, by weight.
        gaps = np.arange(1, (self.length - stored) // 2 + 1)
        scores = (self.power - 1) * np.log(gaps) + rng.gumbel(size=(rows, len(gaps)))
        places = stored + 2 * (-scores).argsort(1)[:, : self.pairs]
        targets = np.full_like(ids, UNASKED)
        np.put_along_axis(ids, places, keys, 1)
        np.put_along_axis(targets, places, values, 1)
        return examples(ids, targets)


@register
@dataclass(frozen=True)
class JointRecall(Task):
    """Joint recall (HAX, Zhan et al. 2025, https://arxiv.org/abs/2507.00449): the value depends on a context and a key together.

    ``BOS c1 k v k v ... c2 k v ... SEP`` and the same table once more in another order of contexts, and of keys within each;
    in the second half every key asks for its value. Who sees the key and not the context is right in about one of
    ``contexts`` cases.
    """

    contexts: int = 5
    keys: int = 5
    values: int = 16

    def __post_init__(self) -> None:
        require(
            1 <= self.contexts <= 16 and 1 <= self.keys <= 16 and 1 <= self.values <= 16,
            f"JointRecall has 1 to 16 contexts, keys and values; got {self.contexts}, {self.keys}, {self.values}",
        )

    BOS, SEP, VALUE, KEY, CONTEXT = 1, 4, 10, 26, 42  # not annotated: constants, no fields
    vocab_size = 58

    @property
    def chance(self) -> float:
        return 1 / self.values

    def draw(self, rows: int, rng: np.random.Generator) -> Examples:
        contexts, keys = distinct(rng, rows, 16, self.contexts), distinct(rng, rows, 16, self.keys)
        values = rng.integers(self.values, size=(rows, self.contexts, self.keys))
        first, _ = self._table(contexts, keys, values, rng)
        second, asked = self._table(contexts, keys, values, rng)
        bos, sep = np.full((rows, 1), self.BOS), np.full((rows, 1), self.SEP)
        ids = np.concatenate([bos, first, sep, second], 1)
        targets = np.concatenate([np.full((rows, first.shape[1] + 2), UNASKED), asked], 1)
        return examples(ids, targets)

    def _table(self, contexts: np.ndarray, keys: np.ndarray, values: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Ids and targets of the whole table in a random order."""
        rows = len(contexts)
        order = distinct(rng, rows, self.contexts, self.contexts)  # (rows, C)
        inner = rng.random(values.shape).argsort(2)  # (rows, C, K), of each place
        line = np.arange(rows)[:, None]
        chosen_keys = keys[line[..., None], inner]
        chosen_values = values[line[..., None], order[..., None], inner]
        ids = np.empty((rows, self.contexts, 1 + 2 * self.keys), np.int64)
        targets = np.full_like(ids, UNASKED)
        ids[:, :, 0] = self.CONTEXT + contexts[line, order]
        ids[:, :, 1::2] = self.KEY + chosen_keys
        ids[:, :, 2::2] = targets[:, :, 1::2] = self.VALUE + chosen_values
        return ids.reshape(rows, -1), targets.reshape(rows, -1)


@register
@dataclass(frozen=True)
class InductionHeads(Task):
    """Induction heads, as the Mamba paper poses it (Gu and Dao 2023, https://arxiv.org/abs/2312.00752; Olsson et al. 2022).

    Random tokens; a special one, 0, stands somewhere among them and again at the end: what followed it the first time is asked for.
    Tested at ``length`` and at each of ``test_lengths``.
    """

    length: int = 256
    vocab_size: int = 16
    test_lengths: tuple[int, ...] = (1024, 4096)

    def __post_init__(self) -> None:
        require(min((self.length, *self.test_lengths)) >= 3, f"InductionHeads needs a length of 3 or more; got {self.length}")
        require(self.vocab_size >= 2, f"InductionHeads needs a vocabulary of 2 or more; got {self.vocab_size}")

    @property
    def chance(self) -> float:
        return 1 / (self.vocab_size - 1)

    def tests(self) -> Mapping[str, Task]:
        return {f"length {n}": replace(self, length=n) for n in (self.length, *self.test_lengths)}

    def draw(self, rows: int, rng: np.random.Generator) -> Examples:
        ids = rng.integers(1, self.vocab_size, size=(rows, self.length))
        place = rng.integers(self.length - 2, size=rows)
        line = np.arange(rows)
        ids[line, place] = ids[:, -1] = 0
        targets = np.full_like(ids, UNASKED)
        targets[:, -1] = ids[line, place + 1]
        return examples(ids, targets)


@register
@dataclass(frozen=True)
class Needle(Task):
    """Needle retrieval: the pass key of Mohtashami and Jaggi 2023 (https://arxiv.org/abs/2305.16300) with several needles.

    Filler, and in it ``needles`` times ``mark key digit ... digit`` with different keys, at random places; at the end
    ``mark key digit ... digit`` once more with one of the keys, where every digit is asked for, the first at the key.
    Tested at ``length`` and at each of ``test_lengths``. Ids: mark 0, digits 1..10, keys 11..26, filler above.
    """

    length: int = 256
    needles: int = 1
    digits: int = 4
    filler: int = 64
    test_lengths: tuple[int, ...] = (1024,)

    MARK, DIGIT, KEY, FILLER = 0, 1, 11, 27

    def __post_init__(self) -> None:
        require(1 <= self.needles <= 16, f"Needle has 16 keys: needles must lie in 1..16; got {self.needles}")
        require(self.digits >= 1 and self.filler >= 1, f"digits and filler must be positive; got {self.digits} and {self.filler}")
        least = (self.needles + 1) * (self.digits + 2)
        shortest = min((self.length, *self.test_lengths))
        require(shortest >= least, f"{self.needles} needles and a question take {least} places; got a length of {shortest}")

    @property
    def vocab_size(self) -> int:  # type: ignore[override]
        return self.FILLER + self.filler

    @property
    def chance(self) -> float:
        return 1 / 10

    def tests(self) -> Mapping[str, Task]:
        return {f"length {n}": replace(self, length=n) for n in (self.length, *self.test_lengths)}

    def draw(self, rows: int, rng: np.random.Generator) -> Examples:
        size, n = self.digits + 2, self.needles
        ids = rng.integers(self.FILLER, self.vocab_size, size=(rows, self.length))
        keys = self.KEY + distinct(rng, rows, 16, n)
        digits = self.DIGIT + rng.integers(10, size=(rows, n, self.digits))
        needles = np.concatenate([np.zeros((rows, n, 1), np.int64), keys[..., None], digits], 2)
        # Needles that do not touch: places in the row with every needle shrunk to one position.
        free = self.length - size - n * (size - 1)
        starts = np.sort(distinct(rng, rows, free, n), 1) + np.arange(n) * (size - 1)
        places = (starts[..., None] + np.arange(size)).reshape(rows, -1)
        np.put_along_axis(ids, places, needles.reshape(rows, -1), 1)
        asked = needles[np.arange(rows), rng.integers(n, size=rows)]
        ids[:, -size:] = asked
        # The last position holds the last digit: the digits are asked for from the key on.
        targets = np.full_like(ids, UNASKED)
        targets[:, -size + 1 : -1] = asked[:, 2:]
        return examples(ids, targets)
