"""Every registered tiny model keeps every law; under every implementation available here in the full tests."""

from __future__ import annotations

import functools
from typing import Any

import pytest

import statescan  # noqa: F401 - registers what there is
from statescan.registry import create_model, lookup, models, parts
from statescan.testing import LAWS, Report, Subject
from statescan.testing.distributed import law_distributed
from statescan.testing.run import model_subject

TINY = sorted(name for name, entry in models.items() if entry.tiny)


@functools.cache
def subject(name: str) -> Subject:
    return model_subject(name)


@functools.cache
def modes(name: str) -> Any:
    return subject(name).modes()


def few(name: str) -> Any:
    """Without the portable implementations where there are native ones: every mixer proves these by itself, and so do the full tests."""
    found, refusals = modes(name)
    native = any(mode.name == "native" for mode in found)
    return [mode for mode in found if not (native and mode.name == "portable")], refusals


# Law 6 replaces projections one by one, law 8 compiles and exports: every layer did so by itself already (test_mixers.py), and a stack of
# them takes long.
@pytest.mark.parametrize("law", [pytest.param(law, marks=pytest.mark.full if law in (6, 8) else ()) for law in sorted(LAWS)])
@pytest.mark.parametrize("name", TINY)
def test_law(name: str, law: int) -> None:
    report = Report(name)
    LAWS[law](subject(name), report, *(modes(name) if law in (6, 8) else few(name)))
    print(report)
    report.raise_if_failed()


@pytest.mark.full
@pytest.mark.parametrize("law", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("name", TINY)
def test_law_under_every_implementation(name: str, law: int) -> None:
    report = Report(name)
    LAWS[law](subject(name), report, *modes(name))
    report.raise_if_failed()


@pytest.mark.full
@pytest.mark.parametrize("way", ["DDP", "FSDP2"])
@pytest.mark.parametrize("name", TINY)
def test_two_processes_equal_one(name: str, way: str) -> None:
    report = Report(name)
    law_distributed(functools.partial(create_model, name), subject(name), report, (way,))
    report.raise_if_failed()


def test_every_family_has_a_tiny_model() -> None:
    sequences = [entry for entry in models.values() if not getattr(lookup(entry.spec.name), "reads_windows", False)]
    families = {entry.family.name for entry in sequences if entry.family is not None}
    assert families == {models[name].family.name for name in TINY if models[name].family is not None}  # type: ignore[union-attr]


def test_a_mixer_is_introduced_by_one_family() -> None:
    families = {entry.family.name: entry.family for entry in models.values() if entry.family is not None}
    introduced = [name for family in families.values() for name in family.introduces]
    assert len(set(introduced)) == len(introduced)
    assert set(introduced) <= parts.keys()
