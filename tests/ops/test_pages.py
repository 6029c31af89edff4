"""Memory for large tensors: zeros take nothing before they are written to, and go back; buffers share segments and leave no holes."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from statescan.ops import pages


def resident() -> float:
    """MiB of memory that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def in_large_pages(tensor: torch.Tensor) -> bool:
    """Whether the system was asked for large pages where this lies."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *rest = line.split()
        if name == "VmFlags:" and inside:
            return "hg" in rest
        if not name.endswith(":"):
            first, last = (int(part, 16) for part in name.split("-"))
            inside = first <= tensor.data_ptr() < last
    raise AssertionError("no mapping holds this tensor")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(0,), (3, 5), (700, 1000)])
def test_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    made = pages.zeros(shape, dtype)
    assert (made.shape, made.dtype, made.is_contiguous()) == (shape, dtype, True)
    assert not made.any()
    assert bool((made.fill_(1.0) == 1).all())


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's figures of memory")
def test_memory() -> None:
    before = resident()
    made = pages.zeros((2**20, 16))
    assert resident() - before < 8
    made += 1
    assert resident() - before > 56
    del made
    assert resident() - before < 8


ROOM = 2**20 // 4
"""Numbers of a buffer that lives in a segment."""


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> pages._Pool:
    """An empty one."""
    fresh = pages._Pool()
    monkeypatch.setattr(pages, "_pool", fresh)
    return fresh


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.int32])
@pytest.mark.parametrize("shape", [(), (0,), (3, 5), (700, 1000)])
def test_empty(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for made in (pages.empty(shape, dtype=dtype), pages.empty(*shape, dtype=dtype)):
        assert (made.shape, made.dtype, made.is_contiguous(), made._base) == (shape, dtype, True, None)
        poison = made != made if dtype.is_floating_point or dtype.is_complex else made == torch.iinfo(dtype).max
        assert bool(poison.all())  # the tests run with poisoned memory
        assert bool((made.fill_(1) == 1).all())


@pytest.mark.parametrize("shape", [(3, 5), (700, 1000)])
def test_resident(shape: tuple[int, ...]) -> None:
    weight = torch.nn.Parameter(torch.randn(shape))
    same, narrow = pages.resident(weight), pages.resident(weight, torch.bfloat16)
    assert torch.equal(same, weight)
    assert torch.equal(narrow, weight.bfloat16())
    assert not same.requires_grad
    assert not narrow.requires_grad
    with torch.no_grad():
        weight.zero_()
    assert same.abs().min() > 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's figures of memory")
def test_the_largest_have_pages_of_their_own(pool: pages._Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "LARGEST", 2**24)
    before = resident()
    made = pages.empty(64, 2**18)
    assert not pool.segments
    assert made.fill_(1).min() == 1
    assert resident() - before > 56
    del made
    assert resident() - before < 8


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a system without large pages")
def test_large_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not in_large_pages(pages.empty(ROOM))
    assert in_large_pages(pages.resident(torch.ones(ROOM)))
    monkeypatch.setattr(pages, "LARGEST", 2**19)
    assert in_large_pages(pages.empty(ROOM))


def test_first_room_that_fits(pool: pages._Pool) -> None:
    a, b, c, d = (pages.empty(ROOM) for _ in range(4))
    assert [t.data_ptr() - a.data_ptr() for t in (b, c, d)] == [2**20, 2 * 2**20, 3 * 2**20]
    first, room = a.data_ptr(), b.data_ptr()
    del b
    small = pages.empty(ROOM // 2)
    assert small.data_ptr() == room
    large = pages.empty(ROOM)
    assert large.data_ptr() > d.data_ptr()
    del c, small  # neighbours become one
    assert pages.empty(2 * ROOM).data_ptr() == room
    del a, d, large
    assert pages.empty(60 * ROOM).data_ptr() == first


def test_segments_never_become_one(pool: pages._Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "SEGMENT", 2**22)
    held = [pages.empty(ROOM) for _ in range(12)]
    assert len(pool.segments) == 3
    held.clear()
    held = [pages.empty(4 * ROOM) for _ in range(3)]
    assert (len(pool.segments), pool.sizes) == (3, [])
    assert len({t.data_ptr() for t in held}) == 3


def test_no_two_overlap(pool: pages._Pool) -> None:
    generator = torch.Generator().manual_seed(0)
    held: dict[int, torch.Tensor] = {}
    for step in range(400):
        if len(held) < 12:
            held[step] = pages.empty(int(torch.randint(2**17, 2**19, (), generator=generator))).fill_(step)
        else:
            chosen = sorted(held)[int(torch.randint(len(held), (), generator=generator))]
            assert bool((held.pop(chosen) == chosen).all())
    assert all(bool((tensor == step).all()) for step, tensor in held.items())
    held.clear()
    pool._settle()
    assert pool.sizes == [pages.SEGMENT] * len(pool.segments)


def test_threads(pool: pages._Pool) -> None:
    def work(number: int) -> bool:
        right = True
        for step in range(200):
            mine = pages.empty(ROOM).fill_(number * 1000 + step)
            other = pages.empty(2 * ROOM).fill_(-1)
            right &= bool((mine == number * 1000 + step).all()) and bool((other == -1).all())
        return right

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(4)))
    pool._settle()
    assert pool.sizes == [pages.SEGMENT] * len(pool.segments)


def test_without_addresses(pool: pages._Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    with pool.lock:  # as in a process that was forked while another thread held it
        assert pages.empty(ROOM).shape == (ROOM,)
        pages.release()
    monkeypatch.setattr(pages, "SEGMENT", 2**62)
    assert pages.empty(ROOM).shape == (ROOM,)
    assert not pool.segments


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's figures of memory")
def test_release(pool: pages._Pool) -> None:
    kept, made = pages.empty(ROOM).fill_(3), pages.empty(60 * ROOM).fill_(1)
    del made
    before = resident()
    pages.release()
    assert resident() < before - 50
    assert bool((kept == 3).all())
    assert bool((pages.empty(60 * ROOM).fill_(1) == 1).all())
