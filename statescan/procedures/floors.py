"""What any model has to beat on a generated task: an answer without looking, simple classifiers, a ridge regression; an LSTM, attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.data.tasks import UNASKED
from statescan.data.tasks.base import ClassRows, Examples
from statescan.data.tasks.episodes import Timed
from statescan.data.tasks.signals import Signals
from statescan.protocols import Bus, Mixer
from statescan.spec import Spec
from statescan.timeline import Timeline

WINDOW = 256
"""Of a token task, and of a signal, the floors see so many positions back; of a row that has one class, all."""
_BLOCK = 4096  # questions whose rows are copied at a time
_MOST = 20_000  # questions to fit to: more of them change little


class Recurrent(Mixer):
    """torch's LSTM in a mixer's or a network's place. What stands behind a position does not reach it; it knows no timeline."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(d_model, d_model, batch_first=True)

    def forward(
        self, x: Tensor, timeline: Timeline | None = None, *, state: Any = None, return_state: bool = False, bus: Bus | None = None
    ) -> Any:
        y, after = self.lstm(x, state)
        return (y, after) if return_state else y


def small_transformer(d_model: int) -> nn.Module:
    """Causal attention in a mixer's place: four heads with rotary positions, where the width allows."""
    heads = 4 if d_model % 8 == 0 else 1
    rotary_base = None if d_model // heads % 2 else 10_000.0
    return Spec("Attention", num_heads=heads, rotary_base=rotary_base)(d_model)  # type: ignore[no-any-return]


def floors(train: Any, batches: Mapping[str, list[Any]], vocab_size: int) -> dict[str, dict[str, float]]:
    """Floor -> test -> score.

    For ids: ``majority``, the most frequent answer; ``bag of tokens``, a logistic regression on how often each id stood there up to the
    question; ``logistic`` and ``MLP`` (64 hidden units) on the ids at each place up to the question. For signals: ``last value``, and
    ``ridge``, a linear filter; of frames, pixel by pixel.

    Args:
        train: rows to fit to, as a task draws them.
        batches: test -> its rows in batches.
        vocab_size: of the task.
    """
    if isinstance(train, Signals):
        models = {"last value": Filter(torch.ones(1)), "ridge": ridge(train.apart())}
        apart = {test: [batch.apart() for batch in rows] for test, rows in batches.items()}
        return {name: {test: _mean([b.score(model) for b in rows]) for test, rows in apart.items()} for name, model in models.items()}
    known = _questions(train, vocab_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        answer = {"majority": _majority(known), "bag of tokens": _fitted(Bag(vocab_size, known.classes), known, lr=0.1)}
        answer |= {
            name: _fitted(Places(known.window.shape[1] * (vocab_size + 1), hidden, known.classes), known)
            for name, hidden in (("logistic", 0), ("MLP", 64))
        }
    found: dict[str, dict[str, float]] = {name: {} for name in answer}
    for test, rows in batches.items():
        asked = [_questions(batch, vocab_size, known.window.shape[1]) for batch in rows]
        for name, guess in answer.items():
            found[name][test] = _mean([_right(batch, q, guess(q)) for batch, q in zip(rows, asked, strict=True)])
    return found


class Questions(NamedTuple):
    """Where answers are asked for, and what was there to see."""

    at: tuple[Tensor, Tensor]
    """Rows and positions (Q,)."""
    answers: Tensor
    """(Q,)"""
    counts: Tensor
    """(Q, V): the root of how often each id stands in the row up to the position."""
    window: Tensor
    """(Q, W): the ids up to the position, each plus (V + 1) times its place in the window; id V where there is none."""
    classes: int


def _questions(batch: ClassRows | Examples | Timed, vocab_size: int, window: int = 0) -> Questions:
    ids = batch.ids
    if isinstance(batch, ClassRows):
        rows = torch.arange(len(ids))
        places, answers = torch.full_like(rows, ids.shape[1] - 1), batch.labels
    else:
        rows, places = (batch.targets != UNASKED).nonzero(as_tuple=True)
        answers = batch.targets[rows, places]
    size = window or (ids.shape[1] if isinstance(batch, ClassRows) else min(WINDOW, ids.shape[1]))
    seen = F.pad(ids, (size - 1, 0), value=vocab_size)[rows.unsqueeze(1), places.unsqueeze(1) + torch.arange(size)]
    counts = torch.zeros(len(rows), vocab_size)
    whole = F.pad(ids, (ids.shape[1] - 1, 0), value=-1)  # a question's row up to it, whatever the window
    for first in range(0, len(rows), _BLOCK):
        some = slice(first, first + _BLOCK)
        past = whole[rows[some].unsqueeze(1), places[some].unsqueeze(1) + torch.arange(ids.shape[1])]
        counts[some].scatter_add_(1, past.clamp(min=0), (past >= 0).float())
    counts.sqrt_()
    return Questions((rows, places), answers, counts, seen + (vocab_size + 1) * torch.arange(size), int(answers.max()) + 1)


class Bag(nn.Module):
    """Logistic regression on the roots of the counts."""

    def __init__(self, vocab_size: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(vocab_size, classes)

    def forward(self, counts: Tensor, window: Tensor) -> Tensor:
        return self.linear(counts)  # type: ignore[no-any-return]


class Places(nn.Module):
    """Logistic regression, or one hidden layer, on one-hot ids by place."""

    def __init__(self, inputs: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.first = nn.EmbeddingBag(inputs, hidden or classes, mode="sum")
        nn.init.normal_(self.first.weight, std=0.05 if hidden else 1e-3)
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(hidden, classes)) if hidden else nn.Identity()

    def forward(self, counts: Tensor, window: Tensor) -> Tensor:
        return self.rest(self.first(window))  # type: ignore[no-any-return]


Guess = Callable[[Questions], Tensor]


def _majority(known: Questions) -> Guess:
    most = known.answers.bincount().argmax()
    return lambda q: most.expand(len(q.answers))


def _fitted(model: nn.Module, known: Questions, steps: int = 250, batch_size: int = 256, lr: float = 1e-2) -> Guess:
    """Adam on the cross-entropy, the rate falling to zero."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    chosen = torch.randperm(len(known.answers))[:_MOST]
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        rows = chosen[torch.randint(len(chosen), (batch_size,))]
        loss = F.cross_entropy(model(known.counts[rows], known.window[rows]), known.answers[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    @torch.no_grad()
    def guess(q: Questions) -> Tensor:
        return model(q.counts, q.window).argmax(-1)  # type: ignore[no-any-return]

    return guess


def _right(batch: Any, q: Questions, answers: Tensor) -> tuple[float, float]:
    if isinstance(batch, ClassRows):
        return float((answers == batch.labels).sum()), float(len(answers))
    rows = batch.examples if isinstance(batch, Timed) else batch
    return rows.right(torch.zeros_like(rows.ids).index_put(q.at, answers))  # type: ignore[no-any-return]


def _mean(scores: list[tuple[float, float]]) -> float:
    return sum(right for right, _ in scores) / sum(asked for _, asked in scores)


class Filter(nn.Module):
    """A linear filter of the signal so far: y_t = sum_i taps_i x_(t-i)."""

    def __init__(self, taps: Tensor) -> None:
        super().__init__()
        self.taps = taps

    def forward(self, x: Tensor) -> Tensor:
        """(B, L) -> (B, L)."""
        padded = F.pad(x, (len(self.taps) - 1, 0)).to(self.taps.dtype)
        return F.conv1d(padded.unsqueeze(1), self.taps.flip(0).view(1, 1, -1)).squeeze(1)

    def scan(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and the signal."""
        return self(x), x

    def step(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """x (B,)."""
        past = torch.cat([past, x.unsqueeze(1).to(past.dtype)], 1)
        return self(past)[:, -1], past


def ridge(train: Signals, strength: float = 1e-6) -> Filter:
    """The taps that explain the targets best, found in float64."""
    size = min(WINDOW, train.ids.shape[1])
    windows = F.pad(train.ids.double(), (size - 1, 0)).unfold(1, size, 1).flip(2)
    rows, places = (~train.targets.isnan()).nonzero(as_tuple=True)
    kept = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:_MOST]
    x, y = windows[rows[kept], places[kept]], train.targets[rows[kept], places[kept]].double()
    gram = x.mT @ x + strength * len(x) * torch.eye(size, dtype=torch.float64)
    return Filter(torch.linalg.solve(gram, x.mT @ y))
