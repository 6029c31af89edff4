"""Every registered mixer keeps every law, under every implementation available here."""

from __future__ import annotations

import functools
from typing import Any

import pytest

import statescan  # noqa: F401 - registers what there is
from statescan.protocols import Mixer
from statescan.registry import parts
from statescan.testing import LAWS, Report, Subject
from statescan.testing.distributed import law_distributed
from statescan.testing.run import stir

WIDTH = 32
CASES = {
    f"{name}-{i}": (cls, arguments)
    for name, cls in sorted(parts.items())
    if issubclass(cls, Mixer)
    for i, arguments in enumerate(cls.examples)
}


@functools.cache
def subject(case: str) -> Subject:
    """One a case for all laws, so that what the reference computed is kept."""
    cls, arguments = CASES[case]
    return Subject(case, stir(cls(WIDTH, **arguments)), width=WIDTH)


@functools.cache
def modes(case: str) -> Any:
    return subject(case).modes()


def _cost(case: str, law: int) -> Any:
    """Law 8 compiles and exports, ten to twenty seconds a case: every twelfth case here, all in the full tests."""
    return pytest.param(case, law, marks=pytest.mark.full if law == 8 and list(CASES).index(case) % 12 else ())


@pytest.mark.parametrize(("case", "law"), [_cost(case, law) for case in CASES for law in sorted(LAWS)])
def test_law(case: str, law: int) -> None:
    report = Report(f"{case} {CASES[case][1]}")
    LAWS[law](subject(case), report, *modes(case))
    print(report)
    report.raise_if_failed()


@pytest.mark.parametrize("way", ["DDP", "FSDP2"])
@pytest.mark.parametrize("case", [pytest.param(case, marks=() if case == "Mamba-0" else pytest.mark.full) for case in CASES])
def test_two_processes_equal_one(case: str, way: str) -> None:
    cls, arguments = CASES[case]
    report = Report(case)
    law_distributed(functools.partial(cls, WIDTH, **arguments), subject(case), report, (way,))
    report.raise_if_failed()


def test_there_is_something_to_check() -> None:
    assert {"Mamba", "Mamba2"} <= {case.partition("-")[0] for case in CASES}
