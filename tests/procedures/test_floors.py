"""Floors: each answers what it can see and no more, on classes, on tokens and on signals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from statescan.data.tasks import UNASKED, Autoregression, Delay, DelaySignal, RepeatFirst
from statescan.data.tasks.base import ClassRows, Examples
from statescan.procedures import floors as module
from statescan.procedures.floors import Recurrent, floors


def of_classes(labels: torch.Tensor, ids: torch.Tensor) -> dict[str, float]:
    """Fitted to the first half of the rows, measured on the other."""
    half = len(ids) // 2
    found = floors(ClassRows(ids[:half], labels[:half]), {"test": [ClassRows(ids[half:], labels[half:])]}, int(ids.max()) + 1)
    return {name: by_test["test"] for name, by_test in found.items()}


def test_each_floor_sees_what_it_says() -> None:
    ids = torch.randint(2, (1000, 8), generator=torch.Generator().manual_seed(0))
    many = of_classes((ids.sum(1) > 4).long(), ids)
    assert many["bag of tokens"] > 0.95
    both = of_classes(ids[:, 2] ^ ids[:, 6], ids)
    assert both["MLP"] > 0.9
    assert max(both["majority"], both["logistic"], both["bag of tokens"]) < 0.65


def test_tokens_are_seen_up_to_the_question() -> None:
    task = Delay(length=12, delay=1, vocab_size=4)
    found = floors(task.sample(64, 0), {"test": [task.sample(32, 1)]}, 4)
    assert found["logistic"]["test"] > 0.95
    assert found["majority"]["test"] < 0.4
    told = RepeatFirst(length=8, least=2, most=4)
    tests = {"short": [told.sample(32, 1)], "long": [replace(told, length=11).sample(32, 1)]}
    assert all(by_test.keys() == tests.keys() for by_test in floors(told.sample(64, 0), tests, 4).values())


class Largest(TorchDispatchMode):
    """Numbers of the largest tensor made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.numbers = max([self.numbers, *(t.numel() for t in tree_leaves(result) if isinstance(t, torch.Tensor))])
        return result


@pytest.mark.parametrize(("vocab_size", "length", "share"), [(8192, 60, 0.03), (4, 600, 1.0)])
def test_counts_cost_a_row_a_question(vocab_size: int, length: int, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids up to each question are counted, those of some questions at a time: not a row a position, nor all that each question saw."""
    monkeypatch.setattr(module, "_BLOCK", 100)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocab_size, (5, length), generator=generator)
    ids[:, ::3] = 3
    targets = torch.where(torch.rand(ids.shape, generator=generator) < share, ids, UNASKED)
    with Largest() as largest:
        found = module._questions(Examples(ids, targets), vocab_size)
    rows, places = found.at
    assert len(rows) > 6
    for i in range(0, len(rows), max(1, len(rows) // 50)):
        assert torch.equal(found.counts[i], ids[rows[i], : places[i] + 1].bincount(minlength=vocab_size).float().sqrt())
    assert largest.numbers == max(found.counts.numel(), found.window.numel())


def test_a_ridge_regression_finds_linear_filters() -> None:
    delay = DelaySignal(length=40, delay=4)
    found = floors(delay.sample(32, 0), {"test": [delay.sample(8, 1)]}, 0)
    assert found["ridge"]["test"] > 0.99 > found["last value"]["test"]
    task = Autoregression(length=24, horizon=16)
    tests = {name: [test.sample(8, 1)] for name, test in task.tests().items()}
    assert min(floors(task.sample(32, 0), tests, 0)["ridge"].values()) > 0.99


def test_the_lstm_looks_back_only() -> None:
    torch.manual_seed(0)
    layer, x = Recurrent(4), torch.randn(2, 6, 4)
    assert torch.equal(layer(x)[:, :3], layer(torch.cat([x[:, :3], torch.zeros(2, 3, 4)], 1))[:, :3])
    with pytest.raises(AttributeError):
        layer.init_state(1)
