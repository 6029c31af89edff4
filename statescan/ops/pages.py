"""Memory for large tensors on a CPU: buffers that leave no holes when they die, and zeros that take nothing before they are written to.

A training step needs the memory of its fullest moment, and whatever lies unused between what lives then. The C library keeps small
things, a tensor's header say, among large ones, so that activations which died leave hundreds of places, each too small for a gradient.
Here large buffers are among themselves: each takes the first room that fits, neighbouring room becomes one, and the system is asked for
pages once, where the C library gives them back and asks again at every step.
"""

from __future__ import annotations

import math
import mmap
import threading
import weakref
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

LARGE = 2**20
"""Bytes of zeros that are worth pages of their own."""
SMALLEST, LARGEST = 2**19, 2**28
"""Bytes of the buffers that share segments; what is larger goes back to the system when it dies."""
SEGMENT = 2**30
"""Bytes of addresses asked for at once, and of the largest weight among them; a page of them exists once it was written to."""
_GRAIN = max(4096, mmap.PAGESIZE)
_ANONYMOUS = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else None


def _in_large_pages(memory: mmap.mmap) -> mmap.mmap:
    """Asks for them, where the system has such."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a system that was built without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


class _Life(weakref.ref[memoryview]):
    """Of a buffer, and which it is: a third of the time of ``weakref.finalize``."""

    __slots__ = ("size", "start")
    start: int
    size: int


class _Pool:
    """Segments, and the room in them by address: segment number * SEGMENT + offset. ``large``: of large pages, where there are such."""

    def __init__(self, large: bool = False) -> None:
        self.large = large
        self.lock = threading.Lock()
        self.segments: list[memoryview] = []
        self.starts: list[int] = []
        self.sizes: list[int] = []
        self.returned: deque[tuple[int, int]] = deque()
        """Buffers that have died: noted by whichever thread drops the last reference, put among the room by the next that takes some."""
        self.lives: dict[int, _Life] = {}
        """A weak reference calls only while it lives itself."""

    def take(self, size: int) -> memoryview | None:
        """A buffer of at least ``size`` bytes, which is room again when it dies; None where the system has no more addresses."""
        size = -(-size // _GRAIN) * _GRAIN
        if not self.lock.acquire(blocking=False):
            return None  # another thread is at it, or was when this process was forked
        try:
            self._settle()
            for place in range(len(self.sizes)):
                if self.sizes[place] >= size:
                    break
            else:
                assert _ANONYMOUS is not None
                memory = mmap.mmap(-1, SEGMENT, **_ANONYMOUS)
                self.segments.append(memoryview(_in_large_pages(memory) if self.large else memory))
                place = len(self.starts)
                self.starts.append((len(self.segments) - 1) * SEGMENT)
                self.sizes.append(SEGMENT)
            start = self.starts[place]
            self.starts[place] += size
            self.sizes[place] -= size
            if not self.sizes[place]:
                del self.starts[place], self.sizes[place]
        except (OSError, ValueError):
            return None
        finally:
            self.lock.release()
        segment, offset = divmod(start, SEGMENT)
        block = self.segments[segment][offset : offset + size]
        life = _Life(block, self._heard)
        life.start, life.size = start, size
        self.lives[id(life)] = life
        return block

    def _heard(self, life: _Life) -> None:
        del self.lives[id(life)]
        self.returned.append((life.start, life.size))

    def _settle(self) -> None:
        while self.returned:
            start, size = self.returned.popleft()
            place = bisect_left(self.starts, start)
            end = start + size
            if place < len(self.starts) and self.starts[place] == end and end % SEGMENT:
                size += self.sizes[place]
                del self.starts[place], self.sizes[place]
            if place and self.starts[place - 1] + self.sizes[place - 1] == start and start % SEGMENT:
                self.sizes[place - 1] += size
            else:
                self.starts.insert(place, start)
                self.sizes.insert(place, size)

    def release(self) -> None:
        if not self.lock.acquire(blocking=False):
            return
        try:
            self._settle()
            for start, size in zip(self.starts, self.sizes, strict=True):
                segment, offset = divmod(start, SEGMENT)
                memory: Any = self.segments[segment].obj
                memory.madvise(mmap.MADV_DONTNEED, offset, size)
        finally:
            self.lock.release()


_pool, _weights = _Pool(), _Pool(large=True)


def empty(*shape: int | Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """``torch.empty`` on a CPU. Its storage cannot be resized."""
    sizes: Any = shape if not shape or isinstance(shape[0], int) else shape[0]
    if math.prod(sizes) * dtype.itemsize < SMALLEST:
        return torch.empty(sizes, dtype=dtype)
    return _made(_pool, LARGEST, torch.Size(sizes), dtype)


def resident(weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A copy on a CPU for the life of a model, in this dtype: in large pages, which one row's product reads a little faster where finding
    an address takes long (docs/decisions/0020).
    """
    return _made(_weights, SEGMENT, weight.shape, dtype or weight.dtype).copy_(weight.detach())


def _made(pool: _Pool, largest: int, sizes: torch.Size, dtype: torch.dtype) -> Tensor:
    count = sizes.numel()
    size = count * dtype.itemsize
    block = None
    if _ANONYMOUS is not None and size >= SMALLEST:
        block = pool.take(size) if size <= largest else _own(size)
    if block is None:
        return torch.empty(sizes, dtype=dtype)
    made = torch.frombuffer(block, dtype=dtype, count=count).resize_(sizes)  # a view would keep a second tensor: no sum in place
    if torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory:  # type: ignore[attr-defined]
        made.fill_(torch.nan if dtype.is_floating_point or dtype.is_complex else torch.iinfo(dtype).max)
    return made


def _own(size: int) -> mmap.mmap | None:
    """Pages which go back to the system with the buffer: large ones, for each is made when it is first written to, and a hundred
    thousand small ones take longer than what is computed into them.
    """
    assert _ANONYMOUS is not None
    try:
        return _in_large_pages(mmap.mmap(-1, size, **_ANONYMOUS))
    except OSError:
        return None


def release() -> None:
    """Give the pages of buffers that have died back to the system: after training, before something else."""
    if hasattr(mmap, "MADV_DONTNEED"):
        _pool.release()


def zeros(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros whose pages do not exist until they are written to, where the system has such. Their storage cannot be resized."""
    size = torch.Size(shape).numel() * dtype.itemsize
    if size < LARGE or _ANONYMOUS is None:
        return torch.zeros(shape, dtype=dtype)
    return torch.frombuffer(mmap.mmap(-1, size, **_ANONYMOUS), dtype=dtype).resize_(shape)
