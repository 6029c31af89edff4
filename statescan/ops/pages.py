"""Memory with pages of its own, which the system takes back when the tensor dies.

What a C library frees in the middle of its heap stays with the process. In a backward pass that is the memory of activations, while the
gradients, which are larger and do not fit the holes, make the heap grow.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

LARGE = 2**19
"""Bytes from which a tensor is worth pages of its own."""
HUGE = 2**22
"""Bytes from which it is worth huge ones, where the system gives such to who asks."""
_POPULATE = 23
"""MADV_POPULATE_WRITE, of Linux 5.14: make all pages at once. One by one, they take twice as long."""


def zeros(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros, on a CPU, whose pages do not exist until they are written to, where the system has such."""
    return _tensor(_map(shape, dtype), shape, dtype) if _wanted(shape, dtype) else torch.zeros(shape, dtype=dtype)


def empty(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """``torch.empty``, poisoned as that is where torch is told to."""
    if not _wanted(shape, dtype):
        return torch.empty(shape, dtype=dtype)
    pages = _map(shape, dtype)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux
        with contextlib.suppress(OSError):  # a kernel without them, or older
            if len(pages) >= HUGE:
                pages.madvise(mmap.MADV_HUGEPAGE)
            pages.madvise(_POPULATE)
    made = _tensor(pages, shape, dtype)
    poisoned = torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    return made.fill_(torch.nan) if poisoned else made


def gradient(shape: Sequence[int]) -> Tensor:
    """``torch.empty`` for the gradient of a weight: a large one would leave a hole that nothing fits once it is dropped.

    The C library gives pages of their own to the very largest itself.
    """
    return empty(shape) if HUGE <= _bytes(shape, torch.float32) < 2**25 else torch.empty(shape)


def _bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    return torch.Size(shape).numel() * dtype.itemsize


def _wanted(shape: Sequence[int], dtype: torch.dtype) -> bool:
    return _bytes(shape, dtype) >= LARGE and hasattr(mmap, "MAP_ANONYMOUS")


def _map(shape: Sequence[int], dtype: torch.dtype) -> mmap.mmap:
    return mmap.mmap(-1, _bytes(shape, dtype), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _tensor(pages: mmap.mmap, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(pages, dtype=dtype).view(shape)
