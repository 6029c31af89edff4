"""Every published or counted number of parameters, on the meta device."""

from __future__ import annotations

import pytest

import statescan  # noqa: F401 - registers what there is
from statescan.registry import create_model, models

COUNTED = sorted(name for name, entry in models.items() if entry.parameters is not None)


@pytest.mark.parametrize("name", COUNTED)
def test_count(name: str) -> None:
    model = create_model(name, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == models[name].parameters
