"""Tensors in pages of their own: what they hold, and that they go back."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from statescan.ops import pages
from statescan.testing.laws import poisoned_memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(0,), (3, 5), (700, 1000)])
def test_zeros_and_empty(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for make in (pages.zeros, pages.empty):
        made = make(shape, dtype)
        assert (made.shape, made.dtype, made.is_contiguous()) == (shape, dtype, True)
        made.fill_(1.0)
        assert bool((made == 1).all())
    assert not pages.zeros(shape, dtype).any()


def test_gradients() -> None:
    for shape in ((3, 5), (1024, 1024), (1024, 2048)):
        made = pages.gradient(shape).fill_(2.0)
        assert (made.shape, made.dtype, float(made.sum())) == (shape, torch.float32, 2.0 * made.numel())


def test_empty_is_poisoned_where_torch_is() -> None:
    with poisoned_memory():
        assert bool(pages.empty((700, 1000)).isnan().all())


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's figures of memory")
def test_pages_go_back() -> None:
    def resident() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))

    before = resident()
    untouched = pages.zeros((2**20, 16))
    assert resident() - before < 20
    untouched += 1
    assert resident() - before > 56
    del untouched
    many = [pages.empty((2**19,)).fill_(1) for _ in range(30)]
    held = [torch.ones(8) for _ in many]
    assert resident() - before > 56
    del many
    assert resident() - before < 20
    assert len(held) == 30
