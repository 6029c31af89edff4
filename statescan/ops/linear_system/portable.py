"""In chunks: inside one, a convolution with the kernel C A^l B; between them, one product with the transition's power.

A position that does not exist takes no power of A: the power between two positions is the number of existing ones from the first to the
second, and pairs on two sides of a reset do not meet. So one table of powers serves every timeline.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from statescan.ops import dispatch
from statescan.ops import native_gate as gate
from statescan.ops.checks import exactly
from statescan.ops.linear_system import op
from statescan.ops.positions import existing

CHUNK = 64
"""Positions a chunk, a power of two."""
CHUNK_UNREAD = 512
"""The same where nothing is read out, which spares the positions' products with each other."""


class Tables(NamedTuple):
    """What all chunks share, for T positions: powers of two of A up to T, C A^l and A^l B."""

    powers: list[Tensor]
    """A, A^2, A^4 ... A^T: (D, N, N) each."""
    read: Tensor
    """C A^l, l = 0..T: (D, M, T + 1, N)."""
    write: Tensor
    """A^l B, l = 0..T-1: (D, N, T)."""
    kernel: Tensor
    """C A^l B, l = 0..T-1: (D, M, T)."""


def tables(A: Tensor, B: Tensor, C: Tensor, size: int) -> Tables:
    """By doubling: [X, X A^k] holds twice as many powers as X."""
    powers, read, write = [A], C.unsqueeze(2), B.unsqueeze(2)
    while read.shape[2] < size:
        power = powers[-1]
        read = torch.cat([read, read @ power.unsqueeze(1)], 2)
        write = torch.cat([write, power @ write], 2)
        powers.append(power @ power)
    kernel = torch.einsum("dmn,dnl->dml", C, write)
    read = torch.cat([read, C.unsqueeze(2) @ powers[-1].unsqueeze(1)], 2)
    return Tables(powers, read, write, kernel)


@op.implementation("portable")
def portable(u: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, reset: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """y (B, L, D, M) and the last h (B, D, N)."""
    with exactly(u):
        u = existing(u, mask)
        if torch.compiler.is_compiling():
            y, last = _opaque(u, A, B, C, state, reset, mask)
            return y, last
        return _run(u, A, B, C, state, reset, mask)


def _run(u: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, reset: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    length = u.shape[1]
    size = min(CHUNK if C.shape[1] else CHUNK_UNREAD, 1 << (length - 1).bit_length())
    shared, h, outputs = tables(A, B, C, size), state, []
    forced = dispatch.forced()
    for start in range(0, length, size):
        part = slice(start, start + size)
        lines = (None if reset is None else reset[:, part], None if mask is None else mask[:, part])
        if torch.is_grad_enabled() and length > size:
            context = partial(_contexts, forced)
            y, h = checkpoint(_chunk, shared, u[:, part], h, *lines, use_reentrant=False, preserve_rng_state=False, context_fn=context)
        else:
            y, h = _chunk(shared, u[:, part], h, *lines)
        outputs.append(y)
    return torch.cat(outputs, 1), h


def _contexts(forced: dict[str, str]) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), dispatch.implementation(**forced)


def _chunk(shared: Tables, u: Tensor, h: Tensor, reset: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    size = u.shape[1]
    here = torch.ones(1, size, dtype=torch.bool, device=u.device) if mask is None else mask
    segment = torch.zeros_like(here, dtype=torch.long) if reset is None else reset.long().cumsum(1)
    here, segment = torch.broadcast_tensors(here, segment)
    count = here.long().cumsum(1)  # existing positions up to and with each
    read = _read if shared.kernel.shape[1] else _unread
    y = read(shared, u, h, here, segment, count)
    # the last state: each input by the power that it has met, and the incoming one if nothing reset
    after = count[:, -1:] - count
    lives = here & (segment == segment[:, -1:])
    place = torch.where(lives, after, size)[:, :, None].expand(u.shape)
    collected = u.new_zeros(u.shape[0], size + 1, u.shape[2]).scatter(1, place, u)[:, :size]
    last = torch.einsum("dnl,bld->bdn", shared.write[:, :, :size], collected)
    kept, left = h, count[:, -1]
    for bit, power in enumerate(shared.powers):
        if mask is None and not size >> bit & 1:
            continue
        moved = torch.einsum("dnm,bdm->bdn", power, kept)
        kept = moved if mask is None else torch.where((left >> bit & 1).bool()[:, None, None], moved, kept)
    return y, last + torch.where((segment[:, -1] == 0)[:, None, None], kept, 0.0)


def _unread(shared: Tables, u: Tensor, h: Tensor, here: Tensor, segment: Tensor, count: Tensor) -> Tensor:
    return u.new_zeros(*u.shape, 0)


def _read(shared: Tables, u: Tensor, h: Tensor, here: Tensor, segment: Tensor, count: Tensor) -> Tensor:
    """y (B, T, D, M)."""
    lag = count.unsqueeze(2) - count.unsqueeze(1)
    meets = here.unsqueeze(2) & here.unsqueeze(1) & (segment.unsqueeze(2) == segment.unsqueeze(1)) & (lag >= 0)
    weights = torch.where(meets, shared.kernel[:, :, lag.clamp(min=0)], 0.0)  # (D, M, b, T, T)
    if weights.shape[2] == 1:
        y = torch.einsum("dmts,bsd->btdm", weights[:, :, 0], u)
    else:
        y = torch.einsum("dmbts,bsd->btdm", weights, u)
    # what the incoming state still says
    echo = torch.einsum("dmln,bdn->bldm", shared.read[:, :, : u.shape[1] + 1], h)
    index = count[:, :, None, None].expand(*u.shape[:2], *echo.shape[2:])
    return y + torch.where((here & (segment == 0))[:, :, None, None], echo.gather(1, index), 0.0)


# -- for compilers, whose graphs must not depend on the length: one opaque operator ------------------------------------------------


def _forward(u: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, reset: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    y, last = _run(u, A, B, C, state, reset, mask)
    return y.contiguous(), last.clone(memory_format=torch.contiguous_format)


def _backward(gy: Tensor, glast: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """Forward again, differentiated. An operator's kernel runs below autograd, which is put back for that."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs[:5]]
    keys = torch._C._dispatch_tls_local_exclude_set() - torch._C.DispatchKeySet(torch._C.DispatchKey.AutogradFunctionality)
    with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), keys), torch.enable_grad():
        outputs = _run(*leaves, *inputs[5:])  # type: ignore[arg-type]
        return tuple(gradient.contiguous() for gradient in torch.autograd.grad(outputs, leaves, (gy, glast)))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, gy: Tensor, glast: Tensor) -> tuple[Tensor | None, ...]:
    return *_opaque_backward(gy, glast, *ctx.saved_tensors), None, None


_INPUTS = "Tensor u, Tensor A, Tensor B, Tensor C, Tensor state, Tensor? reset, Tensor? mask"
_opaque, _opaque_backward = gate.register(
    "linear_system",
    f"({_INPUTS}) -> (Tensor, Tensor)",
    _forward,
    lambda u, A, B, C, state, *line: (u.new_empty(*u.shape, C.shape[1]), torch.empty_like(state, memory_format=torch.contiguous_format)),
    f"(Tensor gy, Tensor glast, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    lambda gy, glast, *inputs: tuple(torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in inputs[:5]),
    _setup,
    _gradients,
    kind="portable",
    devices=("cpu", "cuda"),
)
