"""The selective scan in C++: lanes are channels, time streams by; the backward runs each chunk again from its saved state."""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.ops import native_gate as gate
from statescan.ops import pages
from statescan.ops.native_gate import view
from statescan.ops.selective_scan.recorded import implement

MAX_N = 512
"""Scratch grows with N; beyond this the matrix form of ``portable`` serves better."""
LEAST_L, MOST_R = 16, 128
"""The steps' product is made while scanning from so many positions on, for a tile turns its weight first, and up to a weight of a tile that
stays in the first-level cache. In float32: a processor's own product of bfloat16 is faster.
"""


def _refuse(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, delta_weight: Tensor | None,
    delta_bias: Tensor | None, delta_softplus: bool, state: Tensor, reset_to: Tensor | None, reset: Tensor | None, mask: Tensor | None,
    interval: Tensor | float | None, return_states: bool,
) -> str | None:  # fmt: skip
    if return_states:
        return "return_states asks for every state; the native kernel keeps one a chunk"
    if A.shape[1] > MAX_N:
        return f"N is {A.shape[1]}; the native kernel takes up to {MAX_N}"
    time = interval if isinstance(interval, Tensor) else None
    return gate.refuse(
        (torch.float32, torch.bfloat16), x=x, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_weight=delta_weight,
        delta_bias=delta_bias, state=state, reset_to=reset_to, interval=time,
    )  # fmt: skip


def _multiplies(delta: Tensor, delta_weight: Tensor) -> bool:
    return delta.dtype == delta_weight.dtype == torch.float32 and delta.shape[1] >= LEAST_L and 0 < delta.shape[2] <= MOST_R


def _sizes(x: Tensor, A: Tensor, B: Tensor) -> tuple[int, ...]:
    return (*x.shape, A.shape[1], B.shape[2])


def _chunks(length: int) -> int:
    return (length + gate.SCAN_CHUNK - 1) // gate.SCAN_CHUNK


def _forward(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, delta_bias: Tensor | None,
    state: Tensor, reset_to: Tensor | None, reset: Tensor | None, mask: Tensor | None, interval: Tensor | None, softplus: bool,
    unit: float, save: bool, delta_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """y, the last state, and the state before each chunk (B, chunks, N, E) if ``save``."""
    assert gate.module is not None
    x, delta, B, C, z = gate.rows(x), gate.rows(delta), gate.rows(B), gate.rows(C), gate.rows_or_none(z)
    D, delta_bias, delta_weight = gate.rows_or_none(D), gate.rows_or_none(delta_bias), gate.rows_or_none(delta_weight)
    batch, length, width = x.shape
    n = A.shape[1]
    y = pages.empty((batch, length, width), dtype=x.dtype)
    last = pages.empty((batch, width, n))
    chunks = pages.empty((batch, _chunks(length), n, width) if save else 0)
    gate.module.selective_scan(
        gate.threads(8 * x.numel() * n), softplus, _sizes(x, A, B), view(x), view(delta), view(A), view(B), view(C), view(D), view(z),
        view(delta_bias), view(state), view(reset_to), view(reset), view(mask), view(interval), unit, view(y), view(last),
        view(chunks if save else None), view(delta_weight), 0 if delta_weight is None else delta_weight.shape[1],
    )  # fmt: skip
    return y, last, chunks


def _backward(
    gy: Tensor, glast: Tensor | None, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, reset_to: Tensor | None, reset: Tensor | None, mask: Tensor | None, interval: Tensor | None,
    chunks: Tensor, softplus: bool, unit: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x, delta, A, B, C, D, z, delta_bias, state, reset_to, interval; empty where there is no such input."""
    assert gate.module is not None
    x, delta, B, C, z, gy = gate.rows(x), gate.rows(delta), gate.rows(B), gate.rows(C), gate.rows_or_none(z), gate.rows(gy)
    D, delta_bias = gate.rows_or_none(D), gate.rows_or_none(delta_bias)
    batch, length, width = x.shape
    n, groups = A.shape[1], B.shape[2]
    tiles = batch * groups * ((width // groups + gate.TILE - 1) // gate.TILE)
    outputs = [gate.like(t) for t in (x, delta, A, B, C, D, z, delta_bias)]
    outputs += [pages.empty((batch, width, n)), gate.like(reset_to), gate.like(interval)]
    parts = [pages.empty(tiles, length, n), pages.empty(tiles, length, n), pages.empty(batch, n, width)]
    parts += [pages.empty(batch, width), pages.empty(batch, width), pages.empty((tiles, length) if interval is not None else (1, 1))]
    gate.module.selective_scan_backward(
        gate.threads(8 * x.numel() * n), softplus, _sizes(x, A, B), view(x), view(delta), view(A), view(B), view(C), view(D), view(z),
        view(delta_bias), view(reset_to), view(reset), view(mask), view(interval), unit, view(chunks), view(gy), view(glast),
        *map(view, outputs), *map(view, parts),
    )  # fmt: skip
    return tuple(gate.or_empty(t) for t in outputs)


def _states(batch: int, length: int, width: int, n: int) -> tuple[int, ...]:
    return batch, _chunks(length), n, width


implement("native", _refuse, _forward, _backward, _states, multiplies=_multiplies)
