"""Zeros that take no memory before they are written to."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

LARGE = 2**20
"""Bytes from which a tensor is worth pages of its own."""


def zeros(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros, on a CPU, whose pages do not exist until they are written to, where the system has such."""
    size = torch.Size(shape).numel() * dtype.itemsize
    if size < LARGE or not hasattr(mmap, "MAP_ANONYMOUS"):
        return torch.zeros(shape, dtype=dtype)
    return torch.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=dtype).view(shape)
