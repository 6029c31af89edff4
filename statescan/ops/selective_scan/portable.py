"""The selective scan by blocks: the states of a few positions exist at a time, forward and backward.

Only the state at every ``CHUNK``-th position is kept for the backward pass, which forms the others again. Memory is that of the inputs
plus (L / CHUNK) E N. A double backward holds all states instead.

Letters: B batch, T positions of a block, G groups, F channels a group, N states; inside, states are (B, G, N, F) so that the innermost
axis is the long one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.ops.checks import exactly
from statescan.ops.diagonal_scan.portable import linear_scan, scan_, scan_back_
from statescan.ops.positions import elapsed, existing
from statescan.ops.selective_scan import op
from statescan.ops.selective_scan.steps import multiplied

CHUNK = 32
BLOCK_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 25}
"""Elements of the states of one block: within reach of a CPU's cache, or enough to fill a GPU."""


@op.implementation("portable")
def portable(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_weight: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    state: Tensor,
    reset_to: Tensor | None,
    reset: Tensor | None,
    mask: Tensor | None,
    interval: Tensor | float | None,
    return_states: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """y (B, L, E), the last state (B, E, N) and all states (B, L, E, N) or None."""
    dtype = state.dtype
    inputs, B, C = (existing(tensor, mask).to(dtype) for tensor in (x, B, C))
    delta = elapsed(multiplied(delta, delta_weight, mask), delta_bias, delta_softplus, None, interval, mask, dtype)
    states = None
    if return_states:
        y, states = _all_states(inputs * delta, delta, A.to(dtype), B, C, state, reset, reset_to)
        last = states[:, -1].clone()
    else:
        y, last, _ = _scan(inputs * delta, delta, A.to(dtype), B, C, state, reset, reset_to)
    if D is not None:
        y = torch.addcmul(y, inputs, D.to(dtype))
    if z is not None:
        y = y * F.silu(existing(z, mask).to(dtype))
    return existing(y, mask).to(x.dtype), last, states


def _all_states(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, reset: Tensor | None, reset_to: Tensor | None
) -> tuple[Tensor, Tensor]:
    """y (B, L, E) and every state (B, L, E, N); h_t = exp(delta_t A) h_{t-1} + u_t B_t. Differentiable any number of times."""
    split = (B.shape[2], A.shape[0] // B.shape[2])
    decay = torch.exp(delta.unsqueeze(-1) * A)
    inputs = (u.unflatten(2, split).unsqueeze(-1) * B.unsqueeze(3)).flatten(2, 3)
    if reset is not None:
        assert reset_to is not None
        flag = reset[:, :, None, None]
        inputs = inputs + torch.where(flag, decay * reset_to.unsqueeze(1), 0.0)
        decay = torch.where(flag, 0.0, decay)
    h = linear_scan(decay, inputs, state)
    return (h.unflatten(2, split) * C.unsqueeze(3)).sum(-1).flatten(2), h


class _Blocks:
    """The inputs in the inner layout, cut into blocks of positions; a block is a multiple of CHUNK long."""

    def __init__(
        self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, reset: Tensor | None, reset_to: Tensor | None
    ) -> None:
        self.groups = B.shape[2]
        split = (self.groups, A.shape[0] // self.groups)
        self.u, self.delta = u.unflatten(2, split).unsqueeze(3), delta.unflatten(2, split).unsqueeze(3)  # (B, L, G, 1, F)
        self.A = A.unflatten(0, split).mT.contiguous()  # (G, N, F)
        self.B, self.C = B, C  # (B, L, G, N)
        self.state = self.inner(state)
        self.flag = None if reset is None else reset[..., None, None, None]
        self.reset_to = None if reset_to is None else self.inner(reset_to)
        self.length = u.shape[1]
        budget = BLOCK_ELEMENTS.get(u.device.type, BLOCK_ELEMENTS["cuda"])
        size = CHUNK * max(1, budget // (CHUNK * max(1, self.state.numel())))
        self.spans = [slice(start, min(start + size, self.length)) for start in range(0, self.length, size)]

    def inner(self, state: Tensor) -> Tensor:
        """(B, E, N) to (B, G, N, F)."""
        return state.unflatten(1, (self.groups, -1)).mT.contiguous()

    def outer(self, state: Tensor) -> Tensor:
        """And back."""
        return state.mT.flatten(1, 2).contiguous()

    def room(self) -> Tensor:
        """(B, T, G, N, F) for the longest block. Blocks take turns in it: fresh memory would be cleared by the system each time."""
        batch, *rest = self.state.shape
        return self.state.new_empty(batch, self.spans[0].stop, *rest)

    def states(self, span: slice, before: Tensor, h: Tensor, factor: Tensor) -> Tensor:
        """Fill ``h`` with every state of a block (B, T, G, N, F) and ``factor`` with exp(delta A); the decay that acts: zero at a reset."""
        torch.mul(self.delta[:, span], self.A, out=factor).exp_()
        torch.mul(self.u[:, span], self.B[:, span].unsqueeze(-1), out=h)
        decay = factor
        if self.flag is not None:
            assert self.reset_to is not None
            flag = self.flag[:, span]
            h += torch.where(flag, factor * self.reset_to.unsqueeze(1), 0.0)
            decay = factor.masked_fill(flag, 0.0)
        h[:, 0].addcmul_(decay[:, 0], before)
        scan_(decay, h)
        return decay


@torch.library.custom_op("statescan::selective_scan_blocks", mutates_args=())
def _scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, reset: Tensor | None, reset_to: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """y (B, L, E), the last state, and the states before positions 0, CHUNK, 2 CHUNK ... (n, B, G, N, F)."""
    with exactly(u):
        blocks = _Blocks(u, delta, A, B, C, state, reset, reset_to)
        y = torch.empty_like(u, memory_format=torch.contiguous_format)
        rows = y.view_as(blocks.u)
        # One more than there are chunks, so that tracing need not ask whether the length is below CHUNK: the last state stands at the end.
        kept = blocks.state.new_empty(blocks.length // CHUNK + 2, *blocks.state.shape)
        kept[0] = h = blocks.state
        rooms = blocks.room(), blocks.room()
        for span in blocks.spans:
            all_h, factor = (room[:, : span.stop - span.start] for room in rooms)
            blocks.states(span, h, all_h, factor)
            rows[:, span] = blocks.C[:, span].unsqueeze(3) @ all_h
            h = all_h[:, -1].clone()
            first = span.start // CHUNK + 1
            ends = all_h[:, CHUNK - 1 :: CHUNK].transpose(0, 1)
            kept[first : first + ends.shape[0]] = ends
        kept[-1] = h
        return y, blocks.outer(h), kept


@_scan.register_fake
def _(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, reset: Tensor | None, reset_to: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    batch, groups, n = u.shape[0], B.shape[2], A.shape[1]
    return _like(u), _like(state), state.new_empty(u.shape[1] // CHUNK + 2, batch, groups, n, A.shape[0] // groups)


@torch.library.custom_op("statescan::selective_scan_blocks_backward", mutates_args=())
def _scan_backward(
    grad_y: Tensor,
    grad_last: Tensor,
    kept: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    reset: Tensor | None,
    reset_to: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of u, delta, A, B, C, state and reset_to (of no elements without one), from the last block to the first.

    With g_t the gradient of all that follows with respect to h_t: g_t = C_t grad_y_t + exp(delta_{t+1} A) g_{t+1}, and what
    exp(delta_t A) receives is g_t h_{t-1}.
    """
    with exactly(u):
        blocks = _Blocks(u, delta, A, B, C, state, reset, reset_to)
        grad_y = grad_y.reshape(blocks.u.shape)
        grad_u, grad_delta = torch.empty_like(grad_y), torch.empty_like(grad_y)
        grad_B, grad_C = _like(B), _like(C)
        grad_A = torch.zeros_like(blocks.A)
        grad_reset_to = None if blocks.reset_to is None else torch.zeros_like(blocks.reset_to)
        carried = blocks.inner(grad_last)  # what the block's last state receives from later positions
        rooms, ones = [blocks.room() for _ in range(3)], blocks.A.new_ones(1, A.shape[1])
        for span in reversed(blocks.spans):
            before = kept[span.start // CHUNK]
            h, factor, g = (room[:, : span.stop - span.start] for room in rooms)
            decay = blocks.states(span, before, h, factor)
            grad_C[:, span] = (h @ grad_y[:, span].mT).squeeze(-1)
            torch.mul(blocks.C[:, span].unsqueeze(-1), grad_y[:, span], out=g)
            g[:, -1] += carried
            scan_back_(decay, g)
            carried = decay[:, 0] * g[:, 0]
            grad_u[:, span] = blocks.B[:, span].unsqueeze(3) @ g
            grad_B[:, span] = (g @ blocks.u[:, span].mT).squeeze(-1)
            g *= factor
            if blocks.flag is None:
                g[:, 1:] *= h[:, :-1]
                g[:, 0] *= before
            else:
                assert blocks.reset_to is not None
                assert grad_reset_to is not None
                flag = blocks.flag[:, span]
                grad_reset_to += torch.where(flag, g, 0.0).sum(1)
                previous = torch.cat([before.unsqueeze(1), h[:, :-1]], dim=1)
                g *= torch.where(flag, blocks.reset_to.unsqueeze(1), previous)
            torch.mul(g, blocks.A, out=h)
            grad_delta[:, span] = ones @ h
            g *= blocks.delta[:, span]
            grad_A += g.sum((0, 1))
        return (
            grad_u.reshape(u.shape),
            grad_delta.reshape(delta.shape),
            blocks.outer(grad_A.unsqueeze(0)).squeeze(0),
            grad_B,
            grad_C,
            blocks.outer(carried),
            u.new_empty(0) if grad_reset_to is None else blocks.outer(grad_reset_to),
        )


@_scan_backward.register_fake
def _(
    grad_y: Tensor,
    grad_last: Tensor,
    kept: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    reset: Tensor | None,
    reset_to: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    last = u.new_empty(0) if reset_to is None else _like(reset_to)
    return _like(u), _like(delta), _like(A), _like(B), _like(C), _like(state), last


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(output[2], *inputs)


def _backward(ctx: Any, grad_y: Tensor, grad_last: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    kept, *inputs = ctx.saved_tensors
    if torch.is_grad_enabled():  # for a double backward: autograd's own derivative of the plain formula
        *tensors, reset, reset_to = inputs
        u, delta, A, B, C, state = tensors
        y, states = _all_states(u, delta, A, B, C, state, reset, reset_to)
        wanted = [tensor if needed else None for tensor, needed in zip(inputs, ctx.needs_input_grad, strict=True)]
        present = [tensor for tensor in wanted if tensor is not None]
        gradients = iter(torch.autograd.grad((y, states[:, -1]), present, (grad_y, grad_last), create_graph=True, allow_unused=True))
        return tuple(None if tensor is None else next(gradients) for tensor in wanted)
    *gradients, grad_reset_to = _scan_backward(grad_y, grad_last, kept, *inputs)
    return (*gradients, None, grad_reset_to if ctx.needs_input_grad[7] else None)


_scan.register_autograd(_backward, setup_context=_keep)


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)
