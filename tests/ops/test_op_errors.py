"""A wrong argument gives a ValueError that says what was got and what was expected; dispatch says what it refused and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from statescan import ops
from statescan.ops import dispatch
from statescan.ops.dispatch import Op, explain, implementation
from statescan.timeline import Timeline

GOOD: dict[str, dict[str, Any]] = {
    "causal_conv1d": {"x": (2, 5, 4), "weight": (4, 3)},
    "diagonal_scan": {"a": (2, 5, 4), "b": (2, 5, 4)},
    "selective_scan": {"x": (2, 5, 4), "delta": (2, 5, 4), "A": (4, 3), "B": (2, 5, 3), "C": (2, 5, 3)},
    "ssd": {"x": (2, 5, 4, 2), "delta": (2, 5, 4), "A": (4,), "B": (2, 5, 3), "C": (2, 5, 3)},
}
BAD = [
    ("causal_conv1d", {"x": (2, 5)}, r"x must have shape \(B, L, E\); got \(2, 5\)"),
    ("causal_conv1d", {"weight": (3, 3)}, r"weight must have shape \(4, K\); got \(3, 3\)"),
    ("causal_conv1d", {"bias": (3,)}, r"bias must have shape \(4\); got \(3,\)"),
    ("causal_conv1d", {"state": (2, 3, 4)}, r"state must have shape \(2, 2, 4\); got \(2, 3, 4\)"),
    ("diagonal_scan", {"a": (5, 4)}, r"a and b must both be .*; got \(5, 4\) and \(2, 5, 4\)"),
    ("diagonal_scan", {"a": (2, 4, 4)}, r"a of shape \(2, 4, 4\) does not broadcast to b of shape \(2, 5, 4\)"),
    ("diagonal_scan", {"state": (3, 4)}, r"state must have shape \(2, 4\); got \(3, 4\)"),
    ("selective_scan", {"delta": (2, 5, 1)}, r"delta must have shape \(2, 5, 4\); got \(2, 5, 1\)"),
    ("selective_scan", {"delta": (2, 5, 2), "delta_weight": (2, 4)}, r"delta_weight must have shape \(4, R\); got \(2, 4\)"),
    ("selective_scan", {"delta_weight": (4, 2)}, r"delta must have shape \(2, 5, 2\); got \(2, 5, 4\)"),
    ("selective_scan", {"A": (3, 3)}, r"A must have shape \(4, N\); got \(3, 3\)"),
    ("selective_scan", {"B": (2, 5, 2)}, r"B must have shape \(2, 5, G, 3\); got \(2, 5, 1, 2\)"),
    ("selective_scan", {"B": (2, 5, 3, 3), "C": (2, 5, 3, 3)}, r"B has 3 groups, which do not divide 4"),
    ("selective_scan", {"B": (2, 5, 2, 3)}, r"B and C must have the same groups; got .* and"),
    ("selective_scan", {"z": (2, 4, 4)}, r"z must have shape \(2, 5, 4\); got \(2, 4, 4\)"),
    ("selective_scan", {"state": (2, 3, 4)}, r"state must have shape \(2, 4, 3\); got \(2, 3, 4\): is it the state of another"),
    ("ssd", {"x": (2, 5, 8)}, r"x must have shape \(B, L, H, P\); got \(2, 5, 8\)"),
    ("ssd", {"A": (4, 3)}, r"A must have shape \(4\); got \(4, 3\)"),
    ("ssd", {"D": (4, 3)}, r"D must have shape \(4, 2\); got \(4, 3\)"),
    ("ssd", {"delta_bias": (3,)}, r"delta_bias must have shape \(4\); got \(3,\)"),
    ("ssd", {"state": (4, 2)}, r"state must have shape \(2, 4, 2, 3\); got \(4, 2\)"),
]


def call(op: str, changes: dict[str, Any] | None = None) -> Any:
    drawn = {k: torch.rand(v) if type(v) is tuple else v for k, v in (GOOD[op] | (changes or {})).items()}
    return getattr(ops, op)(**drawn)


@pytest.mark.parametrize("op", list(GOOD))
def test_good_shapes_pass(op: str) -> None:
    assert torch.isfinite(call(op)).all()


@pytest.mark.parametrize(("op", "changes", "message"), BAD)
def test_wrong_shape(op: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(op, changes)


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="activation must be 'silu' or None; got 'gelu'"):
        call("causal_conv1d", {"activation": "gelu"})
    with pytest.raises(ValueError, match="chunk_size must be at least 1; got 0"):
        call("ssd", {"chunk_size": 0})
    with pytest.raises(ValueError, match="a complex decay needs a complex input"):
        call("diagonal_scan", {"a": torch.ones(2, 5, 4, dtype=torch.complex64)})


@pytest.mark.parametrize("op", list(GOOD))
def test_wrong_timeline(op: str) -> None:
    with pytest.raises(ValueError, match=r"timeline.mask has shape \(2, 4\); expected \(2, 5\)"):
        call(op, {"timeline": Timeline(mask=torch.ones(2, 4, dtype=torch.bool))})
    with pytest.raises(ValueError, match=r"timeline\.reset must be bool"):
        call(op, {"timeline": Timeline(reset=torch.ones(2, 5))})


def test_diagonal_scan_has_no_notion_of_time() -> None:
    with pytest.raises(ValueError, match="no notion of elapsed time"):
        call("diagonal_scan", {"timeline": Timeline(interval=torch.ones(2, 5))})


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"(?s)no implementation 'portble'.*portable"), implementation("portble"):
        pass
    with pytest.raises(ValueError, match=r"(?s)no op 'sssd'.*ssd"), implementation(sssd="portable"):
        pass


@pytest.fixture
def picky() -> Iterator[Op]:
    """An op whose native implementation accepts up to three elements."""
    op = Op("_picky", tolerance={})

    def refuse(x: Tensor) -> str | None:
        return f"{x.numel()} elements; it takes up to 3" if x.numel() > 3 else None

    op.implementation("native", refuse=refuse)(lambda x: "native")
    op.implementation("portable")(lambda x: "portable")
    op.implementation("reference")(lambda x: "reference")
    yield op
    del dispatch.ops["_picky"]


def test_the_fastest_that_accepts_runs_and_says_why(picky: Op) -> None:
    assert picky(x=torch.zeros(3)) == "native"
    assert picky(x=torch.zeros(4)) == "portable"
    choice = explain(1)[0]
    assert (choice.op, choice.ran) == ("_picky", "portable")
    assert choice.refused == {"native": "4 elements; it takes up to 3"}
    assert "native refused: 4 elements; it takes up to 3" in str(choice)
    assert picky.available(x=torch.zeros(4)) == {"native": "4 elements; it takes up to 3", "portable": None, "reference": None}


def test_a_forced_implementation_runs_or_raises(picky: Op) -> None:
    with implementation("reference"):
        assert picky(x=torch.zeros(3)) == "reference"
    with implementation(_picky="portable"):
        assert picky(x=torch.zeros(3)) == "portable"
    with implementation("native"), pytest.raises(ValueError, match="forced implementation 'native' refuses: 4 elements"):
        picky(x=torch.zeros(4))
    with implementation("triton"), pytest.raises(ValueError, match="_picky has no implementation 'triton'"):
        picky(x=torch.zeros(3))
    assert picky(x=torch.zeros(3)) == "native"


def test_the_setting_ends_with_the_block(picky: Op) -> None:
    with pytest.raises(RuntimeError), implementation("reference"):
        raise RuntimeError
    assert picky(x=torch.zeros(3)) == "native"
