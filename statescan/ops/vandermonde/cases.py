"""Shapes and values that tests and benchmarks share."""

from __future__ import annotations

import torch
from torch import Tensor

SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {
    "one position": ((3, 4), (3, 4), 1),
    "prime length": ((3, 4), (3, 4), 67),
    "square": ((2, 5), (2, 5), 64),
    "broadcast": ((2, 3, 4), (3, 4), 37),
    "one mode": ((1,), (1,), 10),
    "long": ((2, 8), (2, 8), 4099),
}
"""name -> shapes of c and z, and the length."""


def make(name: str, dtype: torch.dtype = torch.complex128, seed: int = 0) -> tuple[Tensor, Tensor, int]:
    """(c, z, length): slowly decaying modes, one of them real."""
    c_shape, z_shape, length = SHAPES[name]
    g = torch.Generator().manual_seed(seed)
    c = torch.complex(*(torch.randn(c_shape, generator=g, dtype=torch.float64) for _ in range(2)))
    decay = -torch.rand(z_shape, generator=g, dtype=torch.float64) / 20 - 1e-3
    phase = 3 * torch.rand(z_shape, generator=g, dtype=torch.float64)
    phase[..., 0] = 0
    return c.to(dtype), torch.complex(decay, phase), length
