"""The C++ kernels that linear attention and the delta rule share.

Forward the recurrence itself: value channels are independent, so a slice of 24 (64 with AVX-512) of them stays in the first-level cache and
a write costs one pass over it, which decays, writes, answers the query and reads ahead for the next write. The decay of a whole head is
kept beside the slice and costs nothing. Backward from the states saved every 64 positions, in blocks of 16 writes as small matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from statescan.ops import native_gate as gate
from statescan.ops import pages
from statescan.ops.native_gate import view

MAX_STATE = 1 << 19
"""Numbers of a head's state, times the writes a position: the backward pass keeps about five times as many a thread."""

DTYPES = (torch.float32, torch.bfloat16)
"""Of all but the state, which is float32."""

_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor? beta, Tensor? log_decay, Tensor? read"
_LINE = "Tensor? reset, Tensor? mask"


def refuse(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor | None, log_decay: Tensor | None, read: Tensor | None, state: Tensor
) -> str | None:
    """Why the kernels cannot take these (metadata only), or None."""
    numbers = q.shape[3] * v.shape[4] * v.shape[2]
    if numbers > MAX_STATE:
        shape = f"{q.shape[3]} x {v.shape[4]} numbers, and a position {v.shape[2]} writes"
        return f"a head's state has {shape}; the native kernels take a product up to {MAX_STATE}"
    return gate.refuse(DTYPES, q=q, k=k, v=v, beta=beta, log_decay=log_decay, read=read) or gate.refuse((torch.float32,), state=state)


def run(
    op: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, beta: Tensor | None, log_decay: Tensor | None, read: Tensor | None,
    scale: float, state: Tensor, reset: Tensor | None, mask: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y (B, L, H, V) and the last state, by one of the registered ops or directly."""
    inputs = (q, k, v, beta, log_decay, read, state)
    arguments = (*inputs, reset, mask, scale, gate.needs_gradient(*inputs))
    y, last, _ = _forward(*arguments) if gate.direct(*inputs, reset, mask) else op(*arguments)
    return y, last


def _call(q: Tensor, v: Tensor, log_decay: Tensor | None, scale: float) -> tuple[Any, ...]:
    """Threads, kind of decay, scale and sizes, as the binding takes them."""
    batch, length, writes, heads, width = v.shape
    groups, keys = q.shape[2:]
    by_channel = log_decay is not None and log_decay.shape[3] > 1
    return gate.threads(3 * v.numel() * keys), by_channel, scale, (batch, length, writes, heads, groups, keys, width)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor | None, log_decay: Tensor | None, read: Tensor | None, state: Tensor,
    reset: Tensor | None, mask: Tensor | None, scale: float, save: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """y, the last state, and, if ``save``, the state before each chunk (B, chunks, H, K, V) as one row: a tracer would ask whether there is
    just one chunk.
    """
    assert gate.module is not None
    q, k, v, log_decay, read, state = (
        gate.rows(q),
        gate.rows(k),
        gate.rows(v),
        gate.rows_or_none(log_decay),
        gate.rows_or_none(read),
        gate.rows(state),
    )
    y, last = pages.empty(_y_shape(v), dtype=v.dtype), pages.empty(state.shape)
    chunks = pages.empty(_chunks_shape(v, q.shape[3]) if save else 0)
    if not len(q):  # no rows: nothing to share out among threads
        return y, last, chunks.view(-1)
    gate.module.matrix_state(
        *_call(q, v, log_decay, scale), view(q), view(k), view(v), view(beta), view(log_decay), view(read), view(state), view(reset),
        view(mask), view(y), view(last), view(chunks if save else None),
    )  # fmt: skip
    return y, last, chunks.view(-1)


def _backward(
    gy: Tensor, glast: Tensor | None, q: Tensor, k: Tensor, v: Tensor, beta: Tensor | None, log_decay: Tensor | None, read: Tensor | None,
    reset: Tensor | None, mask: Tensor | None, chunks: Tensor, scale: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of q, k, v, beta, log_decay, read and state; empty where there is no such input."""
    assert gate.module is not None
    q, k, v, log_decay, read = gate.rows(q), gate.rows(k), gate.rows(v), gate.rows_or_none(log_decay), gate.rows_or_none(read)
    gy, glast = gate.rows(gy), gate.rows_or_none(glast)
    heads, keys = v.shape[3], q.shape[3]
    chunks = chunks.view(_chunks_shape(v, keys))
    outputs = [gate.like(t) for t in (q, k, v, beta, log_decay, read)]
    outputs.append(pages.empty(chunks.shape[:1] + chunks.shape[2:]))
    shared = heads > q.shape[2]
    parts = [pages.empty(*k.shape[:3], heads, keys) if shared else None]
    parts.insert(0, pages.empty(*q.shape[:2], heads, keys) if shared else None)
    gate.module.matrix_state_backward(
        *_call(q, v, log_decay, scale), view(q), view(k), view(v), view(beta), view(log_decay), view(read), view(reset), view(mask),
        view(chunks), view(gy), view(glast), *map(view, outputs), *map(view, parts),
    )  # fmt: skip
    return tuple(gate.or_empty(t) for t in outputs)


def _y_shape(v: Tensor) -> tuple[int, ...]:
    return (*v.shape[:2], *v.shape[3:])


def _chunks_shape(v: Tensor, keys: int) -> tuple[int, ...]:
    batch, length, _, heads, width = v.shape
    return batch, (length + gate.CHUNK - 1) // gate.CHUNK, heads, keys, width


def _fake(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    state, save = rest[3], rest[-1]
    return v.new_empty(_y_shape(v)), state.new_empty(state.shape), state.new_empty(math.prod(_chunks_shape(v, q.shape[3])) if save else 0)


def _fake_backward(gy: Tensor, glast: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    *inputs, _, _, chunks, _ = rest
    batch, _, *state_shape = _chunks_shape(inputs[2], inputs[0].shape[3])
    state = chunks.new_empty(batch, *state_shape)
    return tuple(gate.fake_like(t, gy) for t in (*inputs, state))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, _, reset, mask, ctx.scale, _ = inputs
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, reset, mask, output[2])


def register(name: str) -> Callable[..., Any]:
    """Make ``statescan::name`` and its backward known to torch: the same kernels under the name of each op."""

    def gradients(ctx: Any, gy: Tensor | None, glast: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        if gy is None:
            gy = torch.zeros(_y_shape(saved[2]), dtype=saved[2].dtype)
        found = backward(gy, glast, *saved, ctx.scale)
        present = (*saved[:6], saved[-1])
        return (*(g if tensor is not None else None for g, tensor in zip(found, present, strict=True)), None, None, None, None)

    op, backward = gate.register(
        name,
        f"({_INPUTS}, Tensor state, {_LINE}, float scale, bool save) -> (Tensor, Tensor, Tensor)",
        _forward,
        _fake,
        f"(Tensor gy, Tensor? glast, {_INPUTS}, {_LINE}, Tensor chunks, float scale) -> ({', '.join(['Tensor'] * 7)})",
        _backward,
        _fake_backward,
        _setup,
        gradients,
    )
    return op
