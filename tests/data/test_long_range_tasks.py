"""ListOps and Pathfinder: the answers are right by another way of finding them, and the draws have the statistics of their grammar."""

from __future__ import annotations

import statistics

import numpy as np
import pytest

from statescan.data.tasks import ListOps, Pathfinder
from statescan.data.tasks.long_range import OPERATORS, evaluate, uniform


def _by_python(symbols: list[int]) -> int:
    """The same expression as nested calls."""
    words = {10: "", 11: "]),"} | {i: f"{i}," for i in range(10)}
    words |= {12 + i: f"{name[1:].lower()}([" for i, name in enumerate(OPERATORS)}
    calls = {"max": max, "min": min, "med": lambda v: int(statistics.median(v)), "sm": lambda v: sum(v) % 10}
    return eval("".join(words[s] for s in symbols).rstrip(","), {"__builtins__": {}}, calls)


def test_listops_answers_and_lengths() -> None:
    task = ListOps(min_length=20, max_length=60)
    ids, labels = task.sample(64, 3)
    lengths = (ids != 10).sum(1)
    assert lengths.min() >= 20
    assert lengths.max() <= 60
    for row, answer in zip(ids.tolist(), labels.tolist(), strict=True):
        symbols = [s for s in row if s != 10]
        assert row[-len(symbols) :] == symbols
        assert answer == _by_python(symbols)
    assert len(set(labels.tolist())) == 10
    again, _ = task.sample(64, 3)
    assert (again == ids).all()


def test_listops_follows_its_grammar() -> None:
    ids, _ = ListOps(min_length=4, max_length=400).sample(400, 0)
    symbols = ids[ids != 10]
    operations, digits = int((symbols >= 12).sum()), int((symbols < 10).sum())
    assert operations == int((symbols == 11).sum())
    # of the nodes below a root a quarter are operations
    assert (operations - 400) / (operations - 400 + digits) == pytest.approx(0.25, abs=0.02)
    counts = np.bincount(symbols[symbols >= 12].numpy() - 12) / operations
    np.testing.assert_allclose(counts, 0.25, atol=0.03)


def test_an_expression_that_is_not_closed() -> None:
    with pytest.raises(ValueError, match="not closed"):
        evaluate([12, 3])


def _joined(picture: np.ndarray) -> bool:
    """Whether the marks are connected, where gaps of one pixel do not part."""
    (start, goal) = (tuple(p) for p in np.argwhere(picture == 2))
    seen, edge = {start}, [start]
    while edge:
        y, x = edge.pop()
        for place in ((y + dy, x + dx) for dy in range(-2, 3) for dx in range(-2, 3)):
            if place not in seen and all(0 <= c < len(picture) for c in place) and picture[place]:
                seen.add(place)
                edge.append(place)
    return goal in seen


def test_pathfinder_is_answered_by_filling() -> None:
    task = Pathfinder()
    chance = uniform(np.random.default_rng(0))
    pictures = [task.picture(chance) for _ in range(200)]
    for picture, same in pictures:
        assert (picture == 2).sum() == 2
        assert _joined(picture) == same
    assert sum(same for _, same in pictures) / 200 == pytest.approx(0.5, abs=0.1)
    ids, labels = task.sample(5, 1)
    assert ids.shape == (5, 256)
    assert set(labels.tolist()) <= {0, 1}


def test_impossible_tasks() -> None:
    for make, words in (
        (lambda: ListOps(min_length=3), "min_length"),
        (lambda: ListOps(max_args=1), "max_args"),
        (lambda: Pathfinder(size=4), "size"),
        (lambda: Pathfinder(margin=1), "margin 2"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
