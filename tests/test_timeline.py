"""Timelines against brute force."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from statescan.timeline import Timeline


def documents(line: Timeline, row: int, length: int) -> list[list[int]]:
    """The existing positions of each document of a row, position by position."""
    found: list[list[int]] = [[]]
    for t in range(length):
        if line.reset is not None and bool(line.reset[row, t]):
            found.append([])
        if line.mask is None or bool(line.mask[row, t]):
            found[-1].append(t)
    return [places for places in found if places]


@st.composite
def timelines(draw: st.DrawFn) -> tuple[Timeline, int, int]:
    batch, length = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    bools = st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=batch, max_size=batch)
    reset = draw(st.none() | bools.map(torch.tensor))
    mask = draw(st.none() | bools.map(torch.tensor))
    interval = draw(st.none() | st.just(0.5) | st.just("uneven"))
    if interval == "uneven":
        interval = torch.arange(1, batch * length + 1).view(batch, length).double()
    return Timeline(reset, mask, interval), batch, length


@settings(max_examples=200, deadline=None)
@given(timelines())
def test_reversed_has_the_same_documents_backwards(drawn: tuple[Timeline, int, int]) -> None:
    line, batch, length = drawn
    back = line.reversed()
    for row in range(batch):
        expected = [[length - 1 - t for t in reversed(places)] for places in reversed(documents(line, row, length))]
        assert documents(back, row, length) == expected
        if isinstance(line.interval, Tensor):
            assert isinstance(back.interval, Tensor)
            for places in documents(line, row, length):
                # backwards, the time between neighbours precedes the earlier one; the first of a document keeps its own first interval
                for earlier, later in itertools.pairwise(places):
                    assert back.interval[row, length - 1 - earlier] == line.interval[row, later]
                assert back.interval[row, length - 1 - places[-1]] == line.interval[row, places[0]]
        else:
            assert back.interval == line.interval


@settings(max_examples=100, deadline=None)
@given(timelines())
def test_apart_is_each_document_by_itself(drawn: tuple[Timeline, int, int]) -> None:
    line, batch, length = drawn
    x = torch.randn(batch, length, 2, dtype=torch.float64)

    def layer(rows: Tensor, own: Timeline | None) -> Tensor:
        """It looks at everything in its row, and at the time that passes."""
        weight: Tensor | float = 1.0 if own is None else own.interval if isinstance(own.interval, float) else own.interval[..., None]  # type: ignore[index]
        assert own is None or (own.reset is None and own.mask is None)
        return torch.cat([(rows * weight).cumsum(1), rows.sum(1, keepdim=True).expand_as(rows)], -1)

    got = line.apart(layer, x)
    expected = torch.zeros(batch, length, got.shape[-1], dtype=torch.float64)
    for row in range(batch):
        for places in documents(line, row, length):
            interval = line.interval
            if isinstance(interval, Tensor):
                interval = interval[row : row + 1, places]
            expected[row, places] = layer(x[row : row + 1, places], None if interval is None else Timeline(interval=interval))[0]
    torch.testing.assert_close(got, expected)


def test_apart_passes_gradients_and_hides_missing_inputs() -> None:
    mask = torch.tensor([[True, False, True]])
    x = torch.tensor([[[1.0], [float("nan")], [2.0]]], requires_grad=True)
    y = Timeline(mask=mask).apart(lambda rows, _: rows.cumsum(1), x)
    assert y.flatten().tolist() == [1.0, 0.0, 3.0]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [2.0, 0.0, 1.0]


def test_packed() -> None:
    line = Timeline.packed([2, 3])
    assert line.reset is not None
    assert line.reset.tolist() == [[True, False, True, False, False]]
    assert line.mask is None
    rows = Timeline.packed([[2, 1], [1]])
    assert rows.reset is not None
    assert rows.mask is not None
    assert rows.reset.tolist() == [[True, False, True], [True, False, False]]
    assert rows.mask.tolist() == [[True, True, True], [True, False, False]]
    assert rows.segments().tolist() == [[1, 1, 2], [1, 1, 1]]


def test_foreign_forms() -> None:
    line = Timeline.packed([2, 3])
    assert torch.equal(Timeline.from_cu_seqlens(torch.tensor([0, 2, 5])).reset, line.reset)  # type: ignore[arg-type]
    again = Timeline.from_seq_idx(torch.tensor([[0, 0, 1, 1, -1]]))
    assert again.reset is not None
    assert again.mask is not None
    assert again.reset.tolist() == [[True, False, True, False, True]]
    assert again.mask.tolist() == [[True, True, True, True, False]]
    assert Timeline.padded(torch.tensor([[0, 1]])).mask.tolist() == [[False, True]]  # type: ignore[union-attr]
    irregular = Timeline.irregular(torch.tensor([[2.0, 2.5, 4.0]]))
    assert isinstance(irregular.interval, Tensor)
    assert irregular.interval.tolist() == [[1.0, 0.5, 1.5]]


def test_slices_and_steps() -> None:
    line = Timeline(torch.tensor([[True, False]]), None, torch.tensor([[1.0, 2.0]]))
    assert line.slice(1, 2).interval.tolist() == [[2.0]]  # type: ignore[union-attr]
    assert line.at(0).reset.tolist() == [True]  # type: ignore[union-attr]
    assert line.at(0).as_sequence().reset.tolist() == [[True]]  # type: ignore[union-attr]
    assert line.repeat_interleave(2).interval.tolist() == [[1.0, 2.0]] * 2  # type: ignore[union-attr]
    assert line.expand(3, 2).reset.shape == (3, 2)  # type: ignore[union-attr]
    assert Timeline(interval=0.5).at(0).interval == 0.5
    assert Timeline().plain
    assert not line.plain


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Timeline.packed([]), "positive integers"),
        (lambda: Timeline.packed([3, 0]), "positive integers"),
        (lambda: Timeline.from_cu_seqlens(torch.tensor([1, 3])), "start at 0"),
        (lambda: Timeline.from_cu_seqlens(torch.tensor([0, 3, 2])), "not decrease"),
        (lambda: Timeline.padded(torch.ones(3)), "batch, length"),
        (lambda: Timeline.irregular(torch.tensor([[2.0, 1.0]])), "do not decrease"),
        (lambda: Timeline.irregular(torch.tensor([2.0])), "batch, length"),
        (lambda: Timeline(reset=torch.ones(2, 3).bool()).expand(2, 4), "timeline.reset has shape"),
        (lambda: Timeline(mask=torch.ones(3, 4).bool()).expand(2, 4), "timeline.mask has shape"),
        (lambda: Timeline(mask=torch.ones(2, 4)).expand(2, 4), r"mask.bool\(\)"),
        (lambda: Timeline().segments(), "one segment"),
        (lambda: Timeline(interval=2.0).without_interval("Hydra"), "Hydra has no notion of elapsed time"),
    ],
)
def test_mistakes_are_named(make: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()  # type: ignore[operator]


def test_unit_time_is_no_time() -> None:
    assert Timeline(interval=1.0).without_interval("x") == Timeline()
