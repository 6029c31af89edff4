"""The recurrence that linear attention and the delta rule share, by chunks: a decaying matrix state, with or without a read before a write.

    S_t = Diag(e^{g_t}) S_{t-1} + k_t (v_t - S_{t-1}^T r_t)^T      (K, V)
    y_t = S_t^T q_t

``g`` is the logarithm of a decay (none, one a head, or one a key channel) and ``r`` (none for linear attention) what a write reads from the
state before it. Inside a chunk of C positions every w_t = v_t - S_{t-1}^T r_t solves a unit triangular system, (I + M) w = v - R S_0, so
that w = U - W S_0 with U and W known before S_0 is: what remains between chunks is one small matrix product after the other.

No exponential of a positive number is ever taken: a decay between two positions is added up over just the positions between them. With one
decay a key channel it cannot leave the sum over channels, so the products are taken by halves: for a second half of a block and its first,
both sides decay towards the boundary between them (log2 C levels of matrix products, and no (C, C, K) tensor).

Letters: B batch, n chunks, C positions a chunk, H heads, K key channels, V value channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.ops.diagonal_scan.portable import linear_scan

CHUNK = 64


def scan(
    q: Tensor, k: Tensor, v: Tensor, read: Tensor | None, log_decay: Tensor | None, state: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """q, k, read (B, L, H, K), v (B, L, H, V), log_decay (B, L, H, 1 or K) <= 0, state (B, H, K, V), all of one dtype; reset (B, L).

    Returns y (B, L, H, V) and the last state. To compilers it is one operator: a traced graph must serve every length.
    """
    return (_opaque if torch.compiler.is_compiling() else chunked)(q, k, v, read, log_decay, state, reset)


def chunked(
    q: Tensor, k: Tensor, v: Tensor, read: Tensor | None, log_decay: Tensor | None, state: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See :func:`scan`."""
    length = v.shape[1]
    chunk = min(CHUNK, 1 << (length - 1).bit_length())  # a power of two, for the halves
    q, k, v = (_split(tensor, chunk) for tensor in (q, k, v))
    r = None if read is None else _split(read, chunk)
    diagonal = torch.diag_embed((q * k).sum(-1))
    connected, fresh, lasting, survives = _segments(reset, chunk)

    if log_decay is None:
        carried = None
        entry, arriving = q, k
        between = torch.ones(chunk, chunk, dtype=q.dtype, device=q.device).tril(-1)
        scores = (q @ k.mT) * between
        overlaps = None if r is None else (r @ k.mT) * between
    else:
        g = _split(log_decay, chunk)
        q = q * g.exp()  # a query reads after its own position's decay, a write reads before it
        since = _before(g)
        entry = q * since.exp()
        arriving = k * _before(g.flip(-2)).flip(-2).exp()
        carried = g.sum(-2).exp().unsqueeze(-1)
        lefts = q.unsqueeze(0) if r is None else torch.stack([q, r])
        products = _by_halves(lefts, k, g) if g.shape[-1] > 1 else (lefts @ k.mT) * _between(g.squeeze(-1))
        scores, overlaps = products[0], None if r is None else products[1]
        r = None if r is None else r * since.exp()
    if connected is not None:
        scores = torch.where(connected, scores, 0.0)
        overlaps = None if overlaps is None else torch.where(connected, overlaps, 0.0)
        entry = torch.where(fresh, entry, 0.0)
        r = None if r is None else torch.where(fresh, r, 0.0)
        arriving = torch.where(lasting, arriving, 0.0)
        carried = survives.to(q.dtype) if carried is None else torch.where(survives, carried, 0.0)
    scores = scores + diagonal

    if r is None:
        ends = arriving.mT @ v
        factor = ends.new_ones(1, 1, 1, 1, 1).expand(*ends.shape[:3], 1, 1) if carried is None else carried
        after = linear_scan(factor, ends, state)
        last = after[:, -1]
        y = scores @ v + entry @ torch.cat([state.unsqueeze(1), after[:, :-1]], dim=1)
    else:
        assert overlaps is not None
        solved = torch.linalg.solve_triangular(overlaps, torch.cat([v, r], dim=-1), upper=False, unitriangular=True)
        u, w = solved.split([v.shape[-1], r.shape[-1]], dim=-1)
        last, states = state, []
        for i in range(v.shape[1]):
            states.append(last)
            kept = last if carried is None else carried[:, i] * last
            last = kept + arriving[:, i].mT @ (u[:, i] - w[:, i] @ last)
        incoming = torch.stack(states, dim=1)
        y = scores @ (u - w @ incoming) + entry @ incoming
    return y.transpose(2, 3).flatten(1, 2)[:, :length], last.clone()


def _split(tensor: Tensor, chunk: int) -> Tensor:
    """(B, L, H, X) to (B, n, H, C, X): the tail is filled with zeros, under which a state stays as it is."""
    padded = F.pad(tensor, (0, 0, 0, 0, 0, -tensor.shape[1] % chunk))
    return padded.unflatten(1, (-1, chunk)).transpose(2, 3)


def _segments(reset: Tensor | None, chunk: int) -> tuple[Any, Any, Any, Any]:
    """What a reset (to zeros) cuts: pairs of positions, what reads the chunk's first state, what lasts to its end, the state itself."""
    if reset is None:
        return None, None, None, None
    flags = F.pad(reset, (0, -reset.shape[1] % chunk)).unflatten(1, (-1, chunk)).unsqueeze(2)
    segment = flags.long().cumsum(-1)  # (B, n, 1, C)
    last = segment[..., -1:]
    connected = segment.unsqueeze(-1) == segment.unsqueeze(-2)
    return connected, (segment == 0).unsqueeze(-1), (segment == last).unsqueeze(-1), (last == 0).unsqueeze(-1)


def _before(g: Tensor) -> Tensor:
    """Sum over the positions before each: (..., C, X)."""
    return F.pad(g, (0, 0, 1, 0))[..., :-1, :].cumsum(-2)


def _between(g: Tensor) -> Tensor:
    """exp of the sum over the positions strictly between i and j < i, 0 elsewhere: (..., C) -> (..., C, C)."""
    here = torch.arange(g.shape[-1], device=g.device)
    terms = torch.where(here.unsqueeze(1) > here, g.unsqueeze(-1), 0.0)  # row m of column j
    span = F.pad(terms, (0, 0, 1, 0))[..., :-1, :].cumsum(-2)
    return span.masked_fill(here.unsqueeze(1) <= here, float("-inf")).exp()


def _by_halves(left: Tensor, right: Tensor, g: Tensor) -> Tensor:
    """The same weights inside the sum over channels: (..., C, K), (..., C, K), (..., C, K) -> strictly lower (..., C, C)."""
    chunk, half = g.shape[-2], 1
    out = torch.zeros(*left.shape[:-1], 1, 1, dtype=g.dtype, device=g.device)  # (..., C / half, half, half)
    while half < chunk:
        decay = g.unflatten(-2, (-1, 2, half))
        late, early = decay[..., 1, :, :], decay[..., 0, :, :]
        row = left.unflatten(-2, (-1, 2, half))[..., 1, :, :] * _before(late).exp()
        column = right.unflatten(-2, (-1, 2, half))[..., 0, :, :] * _before(early.flip(-2)).flip(-2).exp()
        corner = row @ column.mT
        first, second = out.unflatten(-3, (-1, 2)).unbind(-3)
        top = torch.cat([first, torch.zeros_like(first)], dim=-1)
        out = torch.cat([top, torch.cat([corner, second], dim=-1)], dim=-2)
        half *= 2
    return out.squeeze(-3)


_ARGUMENTS = "Tensor q, Tensor k, Tensor v, Tensor? read, Tensor? log_decay, Tensor state, Tensor? reset"
Tensors = tuple[Tensor, ...]


def _forward(*arguments: Any) -> Tensors:
    return tuple(output.contiguous() for output in chunked(*arguments))


def _backward(grad_y: Tensor, grad_last: Tensor, *arguments: Any) -> Tensors:
    """The gradients of all but the reset (of no elements for what is absent), by running the forward pass again."""
    present = [i for i, tensor in enumerate(arguments[:6]) if tensor is not None]

    def forward(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        complete = list(arguments)
        for i, tensor in zip(present, tensors, strict=True):
            complete[i] = tensor
        return chunked(*complete)

    found = dict(zip(present, torch.func.vjp(forward, *(arguments[i] for i in present))[1]((grad_y, grad_last)), strict=True))
    return tuple(found[i].clone(memory_format=torch.contiguous_format) if i in found else grad_y.new_empty(0) for i in range(6))


def _like(tensor: Tensor | None, other: Tensor) -> Tensor:
    return other.new_empty(0) if tensor is None else torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad_y: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    found = _opaque_backward(grad_y, grad_last, *saved)
    return (*(g if tensor is not None else None for g, tensor in zip(found, saved[:6], strict=True)), None)


_opaque = torch.library.custom_op("statescan::matrix_state", _forward, mutates_args=(), schema=f"({_ARGUMENTS}) -> (Tensor, Tensor)")
_opaque_backward = torch.library.custom_op(
    "statescan::matrix_state_backward", _backward, mutates_args=(),
    schema=f"(Tensor grad_y, Tensor grad_last, {_ARGUMENTS}) -> ({', '.join(['Tensor'] * 6)})",
)  # fmt: skip
_opaque.register_fake(lambda q, k, v, read, log_decay, state, reset: (_like(v, v), _like(state, v)))
_opaque_backward.register_fake(lambda grad_y, grad_last, *arguments: tuple(_like(tensor, grad_y) for tensor in arguments[:6]))
_opaque.register_autograd(_gradients, setup_context=_keep)
