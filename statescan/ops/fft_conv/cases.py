"""Shapes and values that tests and benchmarks share."""

from __future__ import annotations

import torch
from torch import Tensor

SHAPES: dict[str, tuple[int, int, int, int, int | None]] = {
    "one position": (2, 1, 3, 1, None),
    "one position, two-sided": (2, 1, 3, 1, 1),
    "prime length": (2, 67, 3, 67, None),
    "two-sided": (2, 37, 3, 37, 37),
    "kernel shorter": (1, 64, 2, 10, 7),
    "kernel longer": (3, 10, 2, 64, 33),
    "long": (1, 2048, 2, 2048, None),
}
"""name -> B, L, D, K, K' (None: causal)."""


def make(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor | None]:
    """(u, k, back)."""
    batch, length, width, taps, back_taps = SHAPES[name]
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    u, k = normal(batch, length, width), normal(width, taps) / taps**0.5
    return u, k, None if back_taps is None else normal(width, back_taps) / back_taps**0.5
