"""Zeros in pages of their own: what they hold, that they take nothing before they are written to, and that they go back."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from statescan.ops import pages


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(0,), (3, 5), (700, 1000)])
def test_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    made = pages.zeros(shape, dtype)
    assert (made.shape, made.dtype, made.is_contiguous()) == (shape, dtype, True)
    assert not made.any()
    assert bool((made.fill_(1.0) == 1).all())


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's figures of memory")
def test_memory() -> None:
    def resident() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))

    before = resident()
    made = pages.zeros((2**20, 16))
    assert resident() - before < 8
    made += 1
    assert resident() - before > 56
    del made
    assert resident() - before < 8
