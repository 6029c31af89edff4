"""Memory with pages of its own, which the system takes back when the tensor dies.

What a C library frees in the middle of its heap stays with the process. In a backward pass that is the memory of activations, while the
gradients, which are larger and do not fit the holes, make the heap grow.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

LARGE = 2**20
"""Bytes from which a tensor is worth pages of its own."""


def zeros(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros, on a CPU, whose pages do not exist until they are written to, where the system has such."""
    return _mapped(shape, dtype, 0) if _wanted(shape, dtype) else torch.zeros(shape, dtype=dtype)


def empty(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """``torch.empty``, poisoned as that is where torch is told to."""
    if not _wanted(shape, dtype):
        return torch.empty(shape, dtype=dtype)
    made = _mapped(shape, dtype, getattr(mmap, "MAP_POPULATE", 0))  # all pages at once: one by one they take twice as long
    poisoned = torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    return made.fill_(torch.nan) if poisoned else made


def _wanted(shape: Sequence[int], dtype: torch.dtype) -> bool:
    return _bytes(shape, dtype) >= LARGE and hasattr(mmap, "MAP_ANONYMOUS")


def _bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    return torch.Size(shape).numel() * dtype.itemsize


def _mapped(shape: Sequence[int], dtype: torch.dtype, flags: int) -> Tensor:
    pages = mmap.mmap(-1, _bytes(shape, dtype), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | flags)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
