"""Shapes and values that tests and benchmarks share."""

from __future__ import annotations

import torch
from torch import Tensor

SHAPES: dict[str, tuple[int, int, int, int]] = {
    "one position": (2, 1, 3, 4),
    "prime length": (2, 67, 3, 4),
    "square": (1, 64, 2, 5),
    "one of each": (1, 1, 1, 1),
    "long": (1, 4099, 2, 8),
}
"""name -> B, L, D, N."""


def make(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(u, z): slowly decaying modes, one of them real."""
    batch, length, width, n = SHAPES[name]
    g = torch.Generator().manual_seed(seed)
    u = torch.randn(batch, length, width, generator=g, dtype=torch.float64)
    decay = -torch.rand(width, n, generator=g, dtype=torch.float64) / 20 - 1e-3
    phase = 3 * torch.rand(width, n, generator=g, dtype=torch.float64)
    phase[..., 0] = 0
    return u.to(dtype), torch.complex(decay, phase)
