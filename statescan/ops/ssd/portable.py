"""The ssd recurrence by chunks: matrix products inside a chunk, a short scan over the states between chunks.

Letters: B batch, n chunks, Q positions a chunk, G groups, F heads a group, P channels a head, N states.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.ops.checks import exactly
from statescan.ops.diagonal_scan.portable import linear_scan
from statescan.ops.positions import elapsed, existing
from statescan.ops.ssd import op

CHUNK = 64


@op.implementation("portable")
def portable(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    delta_limit: tuple[float, float],
    state: Tensor,
    reset_to: Tensor | None,
    reset: Tensor | None,
    mask: Tensor | None,
    interval: Tensor | float | None,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor]:
    """y (B, L, H, P) and the last state (B, H, P, N)."""
    dtype = state.dtype
    scan = _opaque if torch.compiler.is_compiling() else chunked
    with exactly(x):
        inputs, B, C = (existing(tensor, mask).to(dtype) for tensor in (x, B, C))
        delta = elapsed(delta, delta_bias, delta_softplus, delta_limit, interval, mask, dtype)
        y, last = scan(inputs * delta.unsqueeze(-1), delta * A.to(dtype), B, C, state, reset, reset_to, chunk_size or CHUNK)
        if D is not None:
            y = torch.addcmul(y, inputs, D.to(dtype))
        return existing(y, mask).to(x.dtype), last


def chunked(
    u: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, state: Tensor, reset: Tensor | None, reset_to: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor]:
    """H_t = exp(log_decay_t) H_{t-1} + u_t B_t^T, y_t = H_t C_t; u (B, L, H, P), log_decay (B, L, H) <= 0."""
    batch, length, heads, head_dim = u.shape
    chunk = min(chunk, length)
    groups, n = B.shape[2:]
    split = (groups, heads // groups)
    u = _chunks(u, chunk).unflatten(3, split).transpose(2, 3)  # (B, n, G, Q, F, P)
    log_decay = _chunks(log_decay, chunk).movedim(2, 3).unflatten(2, split)  # (B, n, G, F, Q)
    B, C = _chunks(B, chunk).transpose(2, 3), _chunks(C, chunk).transpose(2, 3)  # (B, n, G, Q, N)
    here = torch.arange(chunk, device=u.device)

    # span[i, j] = log decay over j+1..i, added up term by term: differences of one cumulative sum would cancel digits.
    span = torch.where(here.unsqueeze(1) > here, log_decay.unsqueeze(-1), 0.0).cumsum(-2)  # (B, n, G, F, Q, Q)
    connected = here.unsqueeze(1) >= here
    if reset is None:
        begun = None
        entry = log_decay.cumsum(-1)  # log decay since the chunk began, (B, n, G, F, Q)
    else:
        flags = _chunks(reset, chunk)  # (B, n, Q)
        segment = flags.long().cumsum(-1)
        connected = (connected & (segment.unsqueeze(-1) == segment.unsqueeze(-2)))[:, :, None, None]
        begun = segment > 0  # a reset stands between the start of the chunk and here
        latest = torch.where(flags, here, 0).cummax(-1).values[:, :, None, None].expand(log_decay.shape)
        # log decay since the latest reset or, if there was none, since the chunk began
        entry = span.gather(-1, latest.unsqueeze(-1)).squeeze(-1) + log_decay.gather(-1, latest)
    weight = span.masked_fill(~connected, float("-inf")).exp()
    entry = entry.exp()

    scores = (C @ B.mT).unsqueeze(3) * weight  # (B, n, G, F, Q, Q)
    y = (scores @ u.transpose(3, 4)).transpose(3, 4)  # (B, n, G, Q, F, P)

    arriving = u * weight[..., -1, :].transpose(-1, -2).unsqueeze(-1)
    ends = (arriving.flatten(4).mT @ B).unflatten(3, (-1, head_dim))  # (B, n, G, F, P, N)
    carried = entry[..., -1, None, None]  # (B, n, G, F, 1, 1)
    if begun is not None:
        assert reset_to is not None
        reset_to = reset_to.unflatten(1, split)
        lost = begun[:, :, -1, None, None, None, None]
        ends = ends + torch.where(lost, carried * reset_to.unsqueeze(1), 0.0)
        carried = torch.where(lost, 0.0, carried)
    initial = state.unflatten(1, split)
    after = linear_scan(carried, ends, initial)
    incoming = torch.cat([initial.unsqueeze(1), after[:, :-1]], dim=1)

    read = C @ incoming.flatten(3, 4).mT  # (B, n, G, Q, F P)
    if begun is not None:
        assert reset_to is not None
        read = torch.where(begun[:, :, None, :, None], C @ reset_to.flatten(2, 3).mT.unsqueeze(1), read)
    y = torch.addcmul(y, read.unflatten(-1, (-1, head_dim)), entry.transpose(-1, -2).unsqueeze(-1))
    y = y.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :length]
    return y, after[:, -1].reshape(batch, heads, head_dim, n)


@torch.library.custom_op("statescan::ssd_chunked", mutates_args=())
def _opaque(
    u: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, state: Tensor, reset: Tensor | None, reset_to: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor]:
    """``chunked`` as one operator for compilers: the number of chunks depends on the length, and a traced graph must serve every length."""
    y, last = chunked(u, log_decay, B, C, state, reset, reset_to, chunk)
    return y.contiguous(), last.contiguous()


@_opaque.register_fake
def _(
    u: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, state: Tensor, reset: Tensor | None, reset_to: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor]:
    return _like(u), _like(state)


@torch.library.custom_op("statescan::ssd_chunked_backward", mutates_args=())
def _opaque_backward(
    grad_y: Tensor,
    grad_last: Tensor,
    u: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    reset: Tensor | None,
    reset_to: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of u, log_decay, B, C, state and reset_to (of no elements without one), by running the forward pass again."""

    def forward(u: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, state: Tensor, reset_to: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return chunked(u, log_decay, B, C, state, reset, reset_to, chunk)

    pull = torch.func.vjp(forward, u, log_decay, B, C, state, *(() if reset_to is None else (reset_to,)))[1]
    gradients = (*pull((grad_y, grad_last)), *((u.new_empty(0),) if reset_to is None else ()))
    return tuple(gradient.clone(memory_format=torch.contiguous_format) for gradient in gradients)  # type: ignore[return-value]


@_opaque_backward.register_fake
def _(
    grad_y: Tensor,
    grad_last: Tensor,
    u: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    reset: Tensor | None,
    reset_to: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _like(u), _like(log_decay), _like(B), _like(C), _like(state), u.new_empty(0) if reset_to is None else _like(reset_to)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.chunk = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_y: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
    *gradients, grad_reset_to = _opaque_backward(grad_y, grad_last, *ctx.saved_tensors, ctx.chunk)  # type: ignore[call-arg]
    return (*gradients, None, grad_reset_to if ctx.needs_input_grad[6] else None, None)


_opaque.register_autograd(_backward, setup_context=_keep)


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _chunks(tensor: Tensor, chunk: int) -> Tensor:
    """(B, L, ...) to (B, n, Q, ...): the tail is filled with zeros, under which a state stays as it is."""
    length = tensor.shape[1]
    padded = F.pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, -length % chunk))
    return padded.unflatten(1, (-1, chunk))
