"""Some rows c A^j and some states A^(iT) b of the dense real recurrence, both by doubling; one matrix product makes K_(iT+j) of them.

A position costs N multiplications and the powers of A cost N^3 log L a channel, with T near sqrt(L): no loop over positions, and memory
of (D, L) beside one block of channels, which is made again in the backward pass. The discrete transition of a memory is a contraction, so
that its powers are as exact as its steps.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from statescan.ops.blocks import in_blocks
from statescan.ops.dplr_kernel import op
from statescan.ops.opaque import opaque

BLOCK = 1 << 17
"""Numbers that a block of channels holds, about: 1 MiB (one channel at least)."""


def interleave(z: Tensor) -> Tensor:
    """Real and imaginary parts in turn: (..., M) -> (..., 2 M)."""
    return torch.view_as_real(z.resolve_conj()).flatten(-2)


def transition(d: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """x -> d * x - sum_r p_r Re(q_r . x) on real and imaginary parts in turn, (D, 2 M, 2 M): multiplication by d is a rotation."""
    n = 2 * d.shape[1]
    turn = torch.stack([torch.stack([d.real, -d.imag], -1), torch.stack([d.imag, d.real], -1)], -2)  # (D, M, 2, 2)
    A = torch.diag_embed(turn.movedim(1, -1)).movedim(-2, 1).movedim(-1, 3).reshape(-1, n, n)
    return A - interleave(p).mT @ interleave(q.conj())


def _block(c: Tensor, d: Tensor, p: Tensor, q: Tensor, b: Tensor, length: int) -> Tensor:
    """K of some channels."""
    power = transition(d, p, q)
    rows, states = interleave(c.conj()).unsqueeze(1), interleave(b).unsqueeze(1)
    while rows.shape[1] ** 2 < length:
        rows = torch.cat([rows, rows @ power], 1)
        power = power @ power
    while rows.shape[1] * states.shape[1] < length:
        if states.shape[1] > 1:
            power = power @ power
        states = torch.cat([states, states @ power.mT], 1)
    return (states @ rows.mT).flatten(1)[:, :length]


def _channels(d: Tensor, length: int) -> int:
    """Channels of a block: each has the powers of A, the rows, the states and K."""
    n = 2 * d.shape[1]
    return BLOCK // (n * n * (length.bit_length() + 1) + 4 * n * int(length**0.5 + 1) + length)


def _kernel(length: int, *tensors: Tensor) -> Tensor:
    return in_blocks(partial(_block, length=length), _channels(tensors[1], length), *tensors)


def _real(*given: Any) -> tuple[Tensor]:
    *tensors, length = given
    return (_kernel(length, *map(torch.view_as_complex, tensors)),)


_opaque = opaque(
    "dplr_kernel_portable", _real, "Tensor c, Tensor d, Tensor p, Tensor q, Tensor b, SymInt length",
    lambda c, d, p, q, b, length: (c.new_empty(c.shape[0], length),), 1,
)  # fmt: skip


@op.implementation("portable")
def portable(c: Tensor, d: Tensor, p: Tensor, q: Tensor, b: Tensor, length: int) -> Tensor:
    """K (D, L)."""
    if torch.compiler.is_compiling():
        k: Tensor = _opaque(*(torch.view_as_real(t.resolve_conj()) for t in (c, d, p, q, b)), length)
        return k
    return _kernel(length, c, d, p, q, b)
