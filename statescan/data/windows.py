"""Batches of token windows cut from packed documents: streams for training, one pass for evaluation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from statescan.data.corpus import Corpus
from statescan.timeline import Timeline


class Batch(NamedTuple):
    """Inputs (B, L), what follows each of them in its own document (B, L), and where documents begin.

    A target of -100 is not predicted: its position does not exist, or what follows is only read.
    """

    inputs: Tensor
    targets: Tensor
    timeline: Timeline

    def to(self, device: torch.device | str) -> Batch:
        """On another device."""
        reset, mask = (None if field is None else field.to(device) for field in (self.timeline.reset, self.timeline.mask))
        return Batch(self.inputs.to(device), self.targets.to(device), Timeline(reset, mask))


class Windows:
    """Endless batches. Every row is a stream of documents, one behind the other, and each window continues the row's last one.

    So a state carried from window to window sees whole documents. Documents are drawn without replacement, in an order that ``seed``
    and the epoch decide; the reset before each keeps it from seeing its neighbour. A document longer than ``piece`` tokens is cut
    into pieces that are drawn like documents (0: never), which keeps one long file from filling a row for a whole run. One that is not
    predicted throughout stays whole: what is predicted may depend on all that stands before it.

    With several processes each takes its own ``batch_size`` rows of the same batch. ``position`` is all there is to save.
    """

    def __init__(
        self, corpus: Corpus, batch_size: int, length: int, *, seed: int = 0, piece: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        if batch_size < 1 or length < 1 or piece < 0:
            raise ValueError(f"batch_size and length must be positive, piece 0 or more; got {batch_size}, {length}, {piece}")
        self.corpus, self.length, self.seed = corpus, length, seed
        self._mine = slice(rank * batch_size, (rank + 1) * batch_size)
        self._pieces = _cut(corpus, piece)
        self._epoch, self._drawn = 0, 0
        self._order = self._shuffle()
        self._rows = [self._draw() for _ in range(batch_size * world_size)]

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        shape = (len(self._rows), self.length)
        inputs, targets, reset = np.empty(shape, np.int64), np.empty(shape, np.int64), np.zeros(shape, np.bool_)
        for row in range(len(self._rows)):
            filled = 0
            while filled < self.length:
                piece, offset = self._rows[row]
                start, stop = self._pieces[piece]
                here = start + offset
                n = min(self.length - filled, stop - here)
                span = slice(filled, filled + n)
                inputs[row, span] = self.corpus.tokens[here : here + n]
                targets[row, span] = _targets(self.corpus, slice(here + 1, here + n + 1))
                reset[row, filled] |= offset == 0
                filled += n
                self._rows[row] = (piece, offset + n) if here + n < stop else self._draw()
        mine = self._mine
        return Batch(torch.from_numpy(inputs[mine]), torch.from_numpy(targets[mine]), Timeline(reset=torch.from_numpy(reset[mine])))

    @property
    def epoch(self) -> float:
        """How often the corpus has been drawn."""
        return self._epoch + self._drawn / len(self._pieces)

    @property
    def position(self) -> dict[str, Any]:
        """Where the reading stands, as plain data."""
        return {"epoch": self._epoch, "drawn": self._drawn, "rows": [list(row) for row in self._rows]}

    @position.setter
    def position(self, saved: dict[str, Any]) -> None:
        rows = [(int(piece), int(offset)) for piece, offset in saved["rows"]]
        if len(rows) != len(self._rows) or any(piece >= len(self._pieces) for piece, _ in rows):
            raise ValueError(
                f"the saved position has {len(rows)} rows, this run {len(self._rows)} over {len(self._pieces)} documents or pieces: "
                "the data, the batch size or the number of processes has changed"
            )
        self._epoch, self._drawn, self._rows = int(saved["epoch"]), int(saved["drawn"]), rows
        self._order = self._shuffle()

    def _shuffle(self) -> np.ndarray:
        return np.random.default_rng([self.seed, self._epoch]).permutation(len(self._pieces))

    def _draw(self) -> tuple[int, int]:
        if self._drawn == len(self._pieces):
            self._epoch, self._drawn = self._epoch + 1, 0
            self._order = self._shuffle()
        self._drawn += 1
        return int(self._order[self._drawn - 1]), 0


def held_out_batches(corpus: Corpus, batch_size: int, length: int) -> Iterator[Batch]:
    """Every token once: whole documents are dealt to rows, the longest first, and read in windows that continue each other.

    Rows that have ended are filled with positions that do not exist.
    """
    sizes = np.diff(corpus.offsets)
    rows: list[list[int]] = [[] for _ in range(min(batch_size, len(sizes)))]
    load = [0] * len(rows)
    for document in np.argsort(-sizes, kind="stable"):
        row = load.index(min(load))
        rows[row].append(int(document))
        load[row] += int(sizes[document])
    where = [np.concatenate([np.arange(corpus.offsets[d], corpus.offsets[d + 1]) for d in row]) for row in rows]
    starts = np.zeros(len(corpus.tokens), np.bool_)
    starts[corpus.offsets[:-1]] = True
    for begin in range(0, max(load), length):
        shape = (len(rows), min(length, max(load) - begin))
        inputs, targets, reset, exists = (
            np.zeros(shape, np.int64),
            np.full(shape, -100),
            np.zeros(shape, np.bool_),
            np.zeros(shape, np.bool_),
        )
        for row, positions in enumerate(where):
            here = positions[begin : begin + length]
            inputs[row, : len(here)], targets[row, : len(here)] = corpus.tokens[here], _targets(corpus, here + 1)
            reset[row, : len(here)], exists[row, : len(here)] = starts[here], True
        mask = None if exists.all() else torch.from_numpy(exists)
        yield Batch(torch.from_numpy(inputs), torch.from_numpy(targets), Timeline(torch.from_numpy(reset), mask))


def _targets(corpus: Corpus, where: slice | np.ndarray) -> np.ndarray:
    tokens = corpus.tokens[where].astype(np.int64)
    return tokens if corpus.learned is None else np.where(corpus.learned[where], tokens, -100)


def _cut(corpus: Corpus, piece: int) -> list[tuple[int, int]]:
    spans = [(int(a), int(b)) for a, b in itertools.pairwise(corpus.offsets)]
    if not piece:
        return spans
    whole = [corpus.learned is not None and not corpus.learned[start + 1 : stop + 1].all() for start, stop in spans]
    return [
        (at, stop if keep else min(at + piece, stop))
        for (start, stop), keep in zip(spans, whole, strict=True)
        for at in ([start] if keep else range(start, stop, piece))
    ]
