"""State-space duality in C++: a few heads a tile, small matrix products in registers, one saved state a chunk for the backward."""

from __future__ import annotations

import math
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from statescan.ops import native_gate as gate
from statescan.ops import pages
from statescan.ops.frugal import remember
from statescan.ops.native_gate import view
from statescan.ops.ssd import op

MAX_STATE = 65536
"""Scratch holds about a dozen states of P x N numbers a thread."""


def _refuse(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None, delta_softplus: bool,
    delta_limit: tuple[float, float], state: Tensor, reset_to: Tensor | None, reset: Tensor | None, mask: Tensor | None,
    interval: Tensor | float | None, chunk_size: int | None,
) -> str | None:  # fmt: skip
    if x.shape[3] * B.shape[3] > MAX_STATE:
        return f"a head's state has {x.shape[3]} x {B.shape[3]} numbers; the native kernel takes up to {MAX_STATE}"
    time = interval if isinstance(interval, Tensor) else None
    return gate.refuse(
        (torch.float32, torch.bfloat16), x=x, delta=delta, A=A, B=B, C=C, D=D, delta_bias=delta_bias, state=state, reset_to=reset_to,
        interval=time,
    )  # fmt: skip


def _sizes(x: Tensor, B: Tensor) -> tuple[int, ...]:
    return (*x.shape, B.shape[3], B.shape[2])


def _states(x: Tensor, B: Tensor) -> tuple[int, ...]:
    batch, length, heads, p = x.shape
    return batch, (length + gate.CHUNK - 1) // gate.CHUNK, heads, B.shape[3], p


def _forward(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None, state: Tensor,
    reset_to: Tensor | None, reset: Tensor | None, mask: Tensor | None, interval: Tensor | None, softplus: bool, low: float,
    high: float, unit: float, save: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """y, the last state, and, if ``save``, the state before each chunk (B, chunks, H, N, P) as one row: a tracer would ask whether there is
    just one chunk.
    """
    assert gate.module is not None
    x, B, C, D = gate.rows(x), gate.rows(B), gate.rows(C), gate.rows_or_none(D)
    A, delta_bias = gate.rows(A), gate.rows_or_none(delta_bias)
    y, last = pages.empty(x.shape, dtype=x.dtype), pages.empty((x.shape[0], *x.shape[2:], B.shape[3]))
    chunks = pages.empty(_states(x, B) if save else 0)
    gate.module.ssd(
        gate.threads(4 * x.numel() * B.shape[3]), softplus,
        low, high, _sizes(x, B), view(x), view(delta), view(A), view(B), view(C), view(D),
        view(delta_bias), view(state), view(reset_to), view(reset), view(mask), view(interval), unit, view(y), view(last),
        view(chunks if save else None),
    )  # fmt: skip
    return y, last, chunks.view(-1)


_NAMES = tuple(signature(_forward).parameters)


def _remembered(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Output and chunks' states are larger than what they are made from."""
    outputs = _forward(*arguments)
    remember(_forward, dict(zip(_NAMES, arguments, strict=True)), outputs)
    return outputs


def _backward(
    gy: Tensor, glast: Tensor | None, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    delta_bias: Tensor | None, reset_to: Tensor | None, reset: Tensor | None, mask: Tensor | None, interval: Tensor | None,
    chunks: Tensor, softplus: bool, low: float, high: float, unit: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x, delta, A, B, C, D, delta_bias, state, reset_to, interval; empty where there is no such input."""
    assert gate.module is not None
    x, B, C, D, gy = gate.rows(x), gate.rows(B), gate.rows(C), gate.rows_or_none(D), gate.rows(gy)
    A, delta_bias = gate.rows(A), gate.rows_or_none(delta_bias)
    batch, length, heads, p = x.shape
    groups, n = B.shape[2:]
    chunks = chunks.view(_states(x, B))
    tiles = batch * groups * ((heads // groups + gate.HEADS - 1) // gate.HEADS)
    outputs = [gate.like(t) for t in (x, delta, A, B, C, D, delta_bias)]
    outputs += [pages.empty((batch, heads, p, n)), gate.like(reset_to), gate.like(interval)]
    parts = [pages.empty(tiles, length, n), pages.empty(tiles, length, n), pages.empty(batch, heads), pages.empty(batch, heads, p)]
    parts += [pages.empty(batch, heads), pages.empty((tiles, length) if interval is not None else (1, 1))]
    gate.module.ssd_backward(
        gate.threads(4 * x.numel() * B.shape[3]), softplus,
        low, high, _sizes(x, B), view(x), view(delta), view(A), view(B), view(C), view(D),
        view(delta_bias), view(reset_to), view(reset), view(mask), view(interval), unit, view(chunks), view(gy), view(glast),
        *map(view, outputs), *map(view, parts),
    )  # fmt: skip
    return tuple(gate.or_empty(t) for t in outputs)


def _state_like(x: Tensor, B: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[2], x.shape[3], B.shape[3]), dtype=torch.float32)


def _fake(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    saved = math.prod(_states(x, B)) if rest[-1] else 0
    return x.new_empty(x.shape), _state_like(x, B), x.new_empty(saved, dtype=torch.float32)


def _fake_backward(
    gy: Tensor, glast: Tensor | None, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    delta_bias: Tensor | None, reset_to: Tensor | None, reset: Tensor | None, mask: Tensor | None, interval: Tensor | None,
    chunks: Tensor, softplus: bool, low: float, high: float, unit: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    return tuple(gate.fake_like(t, x) for t in (x, delta, A, B, C, D, delta_bias, _state_like(x, B), reset_to, interval))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, delta, A, B, C, D, bias, _, reset_to, reset, mask, interval, *ctx.scalars, _ = inputs
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, delta, A, B, C, D, bias, reset_to, reset, mask, interval, output[2])


def _gradients(ctx: Any, gy: Tensor | None, glast: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    x, delta, A, B, C, D, bias, reset_to, reset, mask, interval, chunks = ctx.saved_tensors
    if gy is None:
        gy = torch.zeros_like(x)
    found = _ssd_backward(gy, glast, x, delta, A, B, C, D, bias, reset_to, reset, mask, interval, chunks, *ctx.scalars)
    present = (x, delta, A, B, C, D, bias, x, reset_to, interval)
    g = [gradient if tensor is not None else None for gradient, tensor in zip(found, present, strict=True)]
    return (*g[:9], None, None, g[9], None, None, None, None, None)


_INPUTS = "Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? delta_bias"
_LINE = "Tensor? reset_to, Tensor? reset, Tensor? mask, Tensor? interval"
_SCALARS = "bool softplus, float low, float high, float unit"
_ssd, _ssd_backward = gate.register(
    "ssd",
    f"({_INPUTS}, Tensor state, {_LINE}, {_SCALARS}, bool save) -> (Tensor, Tensor, Tensor)",
    _remembered,
    _fake,
    f"(Tensor gy, Tensor? glast, {_INPUTS}, {_LINE}, Tensor chunks, {_SCALARS}) -> ({', '.join(['Tensor'] * 10)})",
    _backward,
    _fake_backward,
    _setup,
    _gradients,
)


@op.implementation("native", _refuse)
def native(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None, delta_softplus: bool,
    delta_limit: tuple[float, float], state: Tensor, reset_to: Tensor | None, reset: Tensor | None, mask: Tensor | None,
    interval: Tensor | float | None, chunk_size: int | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y (B, L, H, P) and the last state (B, H, P, N). The kernel has a chunk size of its own."""
    time = gate.floats(interval) if isinstance(interval, Tensor) else None
    unit = float(interval) if interval is not None and not isinstance(interval, Tensor) else 1.0
    inputs = (x, delta, A.float(), B, C, gate.floats(D), gate.floats(delta_bias), state, reset_to)
    low, high = (float(bound) for bound in delta_limit)
    arguments = (*inputs, reset, mask, time, delta_softplus, low, high, unit, gate.needs_gradient(*inputs, time))
    y, last, _ = _forward(*arguments) if gate.direct(*inputs, reset, mask, time) else _ssd(*arguments)
    return y, last
