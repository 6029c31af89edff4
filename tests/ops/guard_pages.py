"""Runs the native kernels with every tensor against a page that must not be touched; a process of its own, since a violation ends it.

Usage: ``python guard_pages.py``. Prints ``untouched`` and the instruction set.
"""

from __future__ import annotations

import ctypes
import math
import mmap
from typing import Any
from unittest import mock

import native_cases as cases
import torch
from test_native_kernels import CASES

from statescan.ops import native_gate as gate
from statescan.ops import products

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
PAGE = mmap.PAGESIZE
NONE, READ_WRITE = 0, mmap.PROT_READ | mmap.PROT_WRITE


def guarded(shape: tuple[int, ...], dtype: torch.dtype, at_end: bool) -> torch.Tensor:
    """A tensor full of NaN that begins right behind, or ends right before, a page without access; never given back."""
    size = math.prod(shape) * dtype.itemsize
    if size == 0:
        return torch.zeros(shape, dtype=dtype)
    pages = (size + PAGE - 1) // PAGE * PAGE
    start = libc.mmap(None, pages + 2 * PAGE, NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    assert start not in (None, ctypes.c_void_p(-1).value)
    assert libc.mprotect(start + PAGE, pages, READ_WRITE) == 0
    ctypes.memset(start + PAGE, 0xFF, pages)
    address = start + PAGE + (pages - size if at_end else 0)
    return torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=dtype).view(shape)


GEMM = [(1, 1, 1), (13, 7, 33), (25, 800, 67), (1540, 5, 18)]
"""Rows, inputs and outputs of a Linear."""


def gemm(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A Linear's output and gradients by the native product."""
    x, weight, bias = inputs.values()
    y = products.multiply(x, weight.T, bias)
    return {"y": y, "gx": products.multiply(y, weight), "gweight": products.multiply(y.T, x)}


def main() -> None:
    plain_empty = torch.empty
    for at_end in (True, False):

        def empty(*shape: Any, dtype: torch.dtype = torch.float32, at_end: bool = at_end) -> torch.Tensor:
            sizes = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
            return guarded(tuple(sizes), dtype, at_end)

        for name, (op, make, options) in CASES.items():
            for timeline in (False, True):
                torch.manual_seed(6)
                inputs = make()
                line = cases.random_timeline(op, inputs) if timeline else None
                expected = cases.run(op, "native", inputs, line, **options)
                near = {k: guarded(tuple(t.shape), t.dtype, at_end).copy_(t) for k, t in inputs.items()}
                if line is not None:
                    line = type(line)(
                        *(guarded(tuple(v.shape), v.dtype, at_end).copy_(v) if isinstance(v, torch.Tensor) else v for v in line)
                    )
                with mock.patch.object(cases, "leaf", lambda t: t.detach().requires_grad_()), mock.patch("torch.empty", empty):
                    got = cases.run(op, "native", near, line, **options)
                with torch.no_grad(), cases.implementation("native"), mock.patch("torch.empty", empty):
                    near.pop("reset_to", None)
                    cases.OPS[op](**near, **options)
                assert torch.empty is plain_empty
                for key, value in expected.items():
                    assert torch.equal(value, got[key]), (name, key)
        for shape in GEMM:
            torch.manual_seed(6)
            inputs = {"x": torch.randn(shape[:2]), "weight": torch.randn(shape[2], shape[1]), "bias": torch.randn(shape[2])}
            expected = gemm(inputs)
            near = {k: guarded(tuple(t.shape), t.dtype, at_end).copy_(t) for k, t in inputs.items()}
            new = mock.patch.object(torch.Tensor, "new_empty", lambda t, *sizes, at_end=at_end: guarded(sizes, torch.float32, at_end))
            with new:
                got = gemm(near)
            for key, value in expected.items():
                assert torch.equal(value, got[key]), (shape, key)
    print("untouched", gate.instruction_set())


if __name__ == "__main__":
    main()
