"""What a task is: a seeded source of rows of ids with the answers that are asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from statescan.heads import LanguageModel, SequenceClassifier
from statescan.layers.norm import NormKind

UNASKED = -100
"""The target of a position where nothing is predicted."""


class Examples(NamedTuple):
    """Ids (B, L); the answer at each position (B, L), -100 where none is asked for; and where several answers are right, all of
    them, bool (B, L, V)."""

    ids: Tensor
    targets: Tensor
    allowed: Tensor | None = None

    def to(self, device: torch.device | str) -> Examples:
        """On another device."""
        return Examples(*(None if t is None else t.to(device) for t in self))  # type: ignore[arg-type]

    def take(self, rows: Tensor) -> Examples:
        """Some of the rows."""
        return Examples(*(None if t is None else t[rows] for t in self))  # type: ignore[arg-type]

    def loss(self, model: Any) -> Tensor:
        """The model's, on these rows."""
        return model.loss(model(self.ids), self.targets)  # type: ignore[no-any-return]

    def score(self, model: nn.Module) -> tuple[float, float]:
        """(right answers, questions), answered by the likeliest id."""
        return self.right(model(self.ids).argmax(-1))

    def right(self, predictions: Tensor) -> tuple[int, int]:
        """(right answers, questions) of predicted ids (B, L)."""
        asked = self.targets != UNASKED
        if self.allowed is None:
            right = predictions == self.targets
        else:
            right = self.allowed.gather(2, predictions.unsqueeze(2)).squeeze(2)
        return int((right & asked).sum()), int(asked.sum())


class Task(ABC):
    """A generated task. Its fields say how hard it is; the same seed gives the same rows."""

    vocab_size: int
    """Ids lie in 0..vocab_size-1."""

    @property
    @abstractmethod
    def chance(self) -> float:
        """The accuracy of a guess among the possible answers."""

    @abstractmethod
    def draw(self, rows: int, rng: np.random.Generator) -> Examples:
        """Random rows."""

    def model(self, d_model: int, layers: str, parts: Mapping[str, Callable[[int], nn.Module]]) -> nn.Module:
        """What learns it: a language model of these layers."""
        return LanguageModel(self.vocab_size, d_model, layers, parts)

    def sample(self, rows: int, *seed: int) -> Examples:
        """The rows that belong to a seed of one or several numbers."""
        return self.draw(rows, np.random.default_rng(seed))

    def tests(self) -> Mapping[str, Task]:
        """What to measure on: the task itself, and for some tasks longer rows than one trains on."""
        return {f"length {self.sample(1, 0).ids.shape[1]}": self}


class ClassRows(NamedTuple):
    """Ids (B, L) and the class of each row (B,)."""

    ids: Tensor
    labels: Tensor

    def to(self, device: torch.device | str) -> ClassRows:
        """On another device."""
        return ClassRows(self.ids.to(device), self.labels.to(device))

    def take(self, rows: Tensor) -> ClassRows:
        """Some of the rows."""
        return ClassRows(self.ids[rows], self.labels[rows])

    def loss(self, model: Any) -> Tensor:
        """The model's, on these rows."""
        return model.loss(model(self.ids), self.labels)  # type: ignore[no-any-return]

    def score(self, model: nn.Module) -> tuple[float, float]:
        """(right answers, rows), answered by the likeliest class."""
        return float((model(self.ids).argmax(-1) == self.labels).sum()), float(len(self.labels))


class ClassTask(Task):
    """A task that asks for one of ``num_classes`` classes a row: a classifier learns it, which averages over the positions."""

    num_classes: int
    norm: ClassVar[NormKind] = "batch"
    """Of the model, as S4 and S5 have it on the long-range arena: what few positions say is lost in a mean over hundreds, unless it is
    scaled by how rare it is."""

    @property
    def chance(self) -> float:
        return 1 / self.num_classes

    def model(self, d_model: int, layers: str, parts: Mapping[str, Callable[[int], nn.Module]]) -> nn.Module:
        return SequenceClassifier(
            self.num_classes, d_model, self.vocab_size, layers, parts, encoder="embedding", norm=self.norm, norm_f=True
        )

    @abstractmethod
    def draw(self, rows: int, rng: np.random.Generator) -> ClassRows:  # type: ignore[override]
        """Random rows."""


def class_rows(ids: np.ndarray, labels: np.ndarray) -> ClassRows:
    """Arrays as tensors."""
    return ClassRows(torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(labels.astype(np.int64)))


def examples(ids: np.ndarray, targets: np.ndarray, allowed: np.ndarray | None = None) -> Examples:
    """Arrays as tensors."""
    return Examples(
        torch.from_numpy(ids.astype(np.int64)),
        torch.from_numpy(targets.astype(np.int64)),
        None if allowed is None else torch.from_numpy(allowed),
    )


def distinct(rng: np.random.Generator, rows: int, choices: int, n: int) -> np.ndarray:
    """(rows, n): in each row n different numbers below ``choices``, in random order."""
    return rng.random((rows, choices)).argsort(1)[:, :n]


def require(condition: bool, message: str) -> None:
    """A ValueError about a task's fields."""
    if not condition:
        raise ValueError(message)
