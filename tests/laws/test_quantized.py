"""Quantised models keep every law: their rounding is part of the model, not of the path taken through it."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from statescan.procedures.quantize import Kind, quantize
from statescan.registry import create_model
from statescan.testing import LAWS, Report, Subject
from statescan.testing.run import model_subject, stir


@functools.cache
def subject(name: str, kind: Kind) -> Subject:
    model = stir(create_model(name))
    quantize(model, kind)
    return model_subject(model)


@functools.cache
def modes(name: str, kind: Kind) -> Any:
    return subject(name, kind).modes()


CASES = [
    pytest.param(name, kind, law, marks=[pytest.mark.full] if law == 8 or (law == 1 and kind == "int8") else [])
    for name, kind in (("mamba-tiny", "int4"), ("mamba2-tiny", "int8"))
    for law in sorted(LAWS)
]


@pytest.mark.parametrize(("name", "kind", "law"), CASES)
def test_law(name: str, kind: Kind, law: int) -> None:
    report = Report(f"{name}, {kind}")
    LAWS[law](subject(name, kind), report, *modes(name, kind))
    print(report)
    report.raise_if_failed()
