"""A tiny model of each family, and a folder it was saved to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import statescan as ss
from statescan.interop import save_pretrained

TINY = ["mamba-tiny", "mamba2-tiny"]


@pytest.fixture(params=TINY)
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return ss.create_model(request.param).eval()


@pytest.fixture
def folder(model: Any, tmp_path: Path) -> Path:
    save_pretrained(model, tmp_path / "saved")
    return tmp_path / "saved"
