"""Floors: each answers what it can see and no more, on classes, on tokens and on signals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from statescan.data.tasks import Autoregression, Delay, DelaySignal, RepeatFirst
from statescan.data.tasks.base import ClassRows
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
