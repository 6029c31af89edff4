"""The recurrence in blocks: positions of a block one after the other, all blocks side by side, then the same for the ends of the blocks.

The derivative of ``linear_scan`` is a ``linear_scan`` over the flipped sequence, so it can be differentiated any number of times. To
compilers it is one opaque operator: its loop depends on the length, which a traced graph must not. Other portable scans build on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from statescan.ops.diagonal_scan import op
from statescan.ops.positions import existing

BLOCK = 16
"""Positions a block. Python's overhead is 2 BLOCK + L / BLOCK**2 + ... calls, the arithmetic about three times the plain loop's."""

WIDE = 8192
"""On a CPU, rows this wide keep a plain loop busier than Python's overhead: the blocks would only add arithmetic."""


@op.implementation("portable")
def portable(
    a: Tensor, b: Tensor, state: Tensor, reset_to: Tensor | None, reset: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """h (B, L, *M) and the last h (B, *M). A reset is the decay 0 and the input a * reset_to + b; a masked position is a = 1, b = 0."""
    dtype = state.dtype
    a, b_ = existing(a.to(dtype), mask, 1.0), existing(b.to(dtype), mask)
    if reset is not None:
        assert reset_to is not None
        flag = reset.reshape(*reset.shape, *(1,) * (b.ndim - 2))
        b_ = b_ + torch.where(flag, a * reset_to.unsqueeze(1), 0.0)
        a = torch.where(flag, 0.0, a)
    h = linear_scan(a, b_, state)
    return existing(h, mask).to(b.dtype), h[:, -1].clone()


def linear_scan(a: Tensor, b: Tensor, state: Tensor) -> Tensor:
    """h_t = a_t h_{t-1} + b_t with h_{-1} = state: b (B, L, *M), state (B, *M), ``a`` of b's axes and broadcastable to it; one dtype."""
    return _opaque(a, b, state) if torch.compiler.is_compiling() else _LinearScan.apply(a, b, state)


def _solve(a: Tensor, b: Tensor, state: Tensor) -> Tensor:
    h = b.clone(memory_format=torch.contiguous_format)
    h[:, 0].addcmul_(a[:, 0], state)
    scan_(a.expand_as(h), h)
    return h


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    a, _, state = inputs
    ctx.save_for_backward(a, state, output)


def _gradients(scan: Callable[[Tensor, Tensor, Tensor], Tensor], ctx: Any, grad_h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """With g_t the gradient of all that follows with respect to h_t: g_t = grad_t + conj(a_{t+1}) g_{t+1}."""
    a, state, h = ctx.saved_tensors
    full = a.expand(a.shape[0], h.shape[1], *a.shape[2:]).conj()
    following = torch.cat([full[:, 1:], full[:, :1]], dim=1)  # the last one meets a state of zeros
    g = scan(following.flip(1), grad_h.flip(1), torch.zeros_like(state)).flip(1)
    previous = torch.cat([state.unsqueeze(1), h[:, :-1]], dim=1)
    return _sum_to(g * previous.conj(), a.shape), g, g[:, 0] * full[:, 0]


class _LinearScan(torch.autograd.Function):
    """For eager code and torch.func."""

    @staticmethod
    def forward(a: Tensor, b: Tensor, state: Tensor) -> Tensor:
        return _solve(a, b, state)

    setup_context = staticmethod(_keep)

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        return _gradients(_LinearScan.apply, ctx, grad_h)


@torch.library.custom_op("statescan::linear_scan", mutates_args=())
def _opaque(a: Tensor, b: Tensor, state: Tensor) -> Tensor:
    return _solve(a, b, state)


@_opaque.register_fake
def _(a: Tensor, b: Tensor, state: Tensor) -> Tensor:
    return torch.empty_like(b, memory_format=torch.contiguous_format)


_opaque.register_autograd(lambda ctx, grad_h: _gradients(_opaque, ctx, grad_h), setup_context=_keep)


def _sum_to(grad: Tensor, shape: torch.Size) -> Tensor:
    """The gradient of a broadcast. A size that is a symbol is never one, so tracing compares nothing."""
    axes = [i for i, size in enumerate(shape) if isinstance(size, int) and size == 1]
    return grad.sum(axes, keepdim=True) if axes else grad


def scan_(a: Tensor, h: Tensor) -> None:
    """In place: h holds b (and, in its first position, what comes from before) and becomes the solution. Shapes as above, `a` expanded."""
    length = h.shape[1]
    if _plain(h):
        _one_by_one_(a, h, 1)
        return
    blocks = length // BLOCK
    head = blocks * BLOCK
    inner = h[:, :head].unflatten(1, (blocks, BLOCK))
    decay = a[:, :head].unflatten(1, (blocks, BLOCK)).clone(memory_format=torch.contiguous_format)
    for t in range(1, BLOCK):
        inner[:, :, t].addcmul_(decay[:, :, t], inner[:, :, t - 1])
        decay[:, :, t].mul_(decay[:, :, t - 1])
    ends = inner[:, :, -1].clone()
    scan_(decay[:, :, -1], ends)
    inner[:, 1:].addcmul_(decay[:, 1:], ends[:, :-1].unsqueeze(2))
    _one_by_one_(a, h, head)


def scan_back_(a: Tensor, g: Tensor) -> None:
    """In place, from the last position to the first: g_t += a_{t+1} g_{t+1}. ``a`` has g's shape; a_0 is not used."""
    if not _plain(g):
        following = torch.cat([a[:, 1:], a[:, :1]], dim=1).flip(1)
        turned = g.flip(1)
        scan_(following, turned)
        g.copy_(turned.flip(1))
        return
    decays, rows = a.unbind(1), g.unbind(1)
    for t in range(g.shape[1] - 1, 0, -1):
        rows[t - 1].addcmul_(decays[t], rows[t])


def _plain(h: Tensor) -> bool:
    """Whether a plain loop is the fastest."""
    return h.shape[1] <= 2 * BLOCK or (h.device.type == "cpu" and h[:, 0].numel() >= WIDE)


def _one_by_one_(a: Tensor, h: Tensor, start: int) -> None:
    decays, rows = a.unbind(1), h.unbind(1)
    for t in range(start, h.shape[1]):
        rows[t].addcmul_(decays[t], rows[t - 1])
