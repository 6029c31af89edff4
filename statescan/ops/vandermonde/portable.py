"""Two short tables and one matrix product: with l = q T + r, exp(l z) = exp(q T z) exp(r z).

Memory is O(N (L/T + T)) beside the output, about N sqrt(L), where the matrix of all powers would hold N L; and of a kernel's rows a block
at a time has tables.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from statescan.ops.blocks import in_blocks
from statescan.ops.vandermonde import op

TRACED_BLOCK = 64
BLOCK = 1 << 15
"""Complex numbers that the tables of a block of rows hold, about: half a MiB (one row at least)."""


def split(length: int) -> tuple[int, int]:
    """Positions a block T, near sqrt(L), and blocks that cover L. A traced graph, which must serve every length, gets a constant T and,
    lest it be made anew for short sequences, never a single block."""
    if torch.compiler.is_compiling() or not isinstance(length, int):
        return TRACED_BLOCK, length // TRACED_BLOCK + 2
    inner = max(1, math.isqrt(length))
    return inner, -(-length // inner)


def powers(z: Tensor, count: int, stride: int) -> Tensor:
    """exp(k stride z) for k = 0..count-1: (..., count, N)."""
    steps = stride * torch.arange(count, device=z.device, dtype=z.real.dtype)
    return torch.exp(steps.unsqueeze(-1) * z.unsqueeze(-2))


def _rows(c: Tensor, z: Tensor, length: int) -> Tensor:
    inner, outer = split(length)
    coarse = c.unsqueeze(-2) * powers(z, outer, inner).to(c.dtype)
    fine = powers(z, inner, 1).to(c.dtype)
    # Re(a b) as a real product of twice the length
    left, right = (torch.view_as_real(t).flatten(-2) for t in (coarse.conj().resolve_conj(), fine))
    covering = (left @ right.mT).flatten(-2)
    # an index where a slice would do: that the blocks cover L is more than a tracer can prove of a slice
    return (
        covering.index_select(-1, torch.arange(length, device=covering.device)) if torch.compiler.is_compiling() else covering[..., :length]
    )


@op.implementation("portable")
def portable(c: Tensor, z: Tensor, length: int) -> Tensor:
    """K (..., L)."""
    if c.shape != z.shape or c.ndim != 2 or torch.compiler.is_compiling():
        return _rows(c, z, length)
    return in_blocks(partial(_rows, length=length), BLOCK // (c.shape[1] * sum(split(length)) + 1), c, z)
