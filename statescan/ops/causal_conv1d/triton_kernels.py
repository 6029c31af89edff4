"""The causal convolution on a GPU: tiles of BT positions by BE channels, K multiply-adds each.

Inputs stand in a history of rows: the K-1 of the state, then those of x. Tap j looks j existing positions back. Without a timeline the
row is known by arithmetic; with one, ``source`` (B, L, K) holds it, or -1 where there is none, and ``target`` (B, K-1+L, K) the way back:
the position that meets a row j positions later, or -1.
"""
# ruff: noqa: RET505 - a branch on None is taken when compiling, and only inside its else the other one does not exist

from __future__ import annotations

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]


@triton.jit
def row_of(source, t, row, length, j, inside, K: tl.constexpr):
    """The row of the history that tap j of the positions t meets, -1 for none."""
    if source is None:
        return tl.where(inside, t + K - 1 - j, -1)
    else:
        return tl.load(source + (row * length + t) * K + j, mask=inside, other=-1)


@triton.jit
def load_row(x, state, at, row, length, width, stride_row, stride_t, e, inside, K: tl.constexpr):
    """The rows ``at`` (BT,) of the history, zero where -1: (BT, BE) in float32."""
    old = (at >= 0) & (at < K - 1)
    new = at >= K - 1
    before = tl.load(state + (row * (K - 1) + at)[:, None] * width + e[None, :], mask=old[:, None] & inside[None, :], other=0.0)
    where = x + row * stride_row + (at - (K - 1))[:, None] * stride_t + e[None, :]
    return before.to(tl.float32) + tl.load(where, mask=new[:, None] & inside[None, :], other=0.0).to(tl.float32)


@triton.jit
def tile_of(length, width, BT: tl.constexpr, BE: tl.constexpr):
    """Row, positions, channels of a program, and which of them are there."""
    t = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)  # wide: times a stride it passes 2^31 in a long sequence
    e = tl.program_id(1) * BE + tl.arange(0, BE)
    return tl.program_id(2).to(tl.int64), t, t < length, e, e < width


@triton.jit
def forward(
    x, state, weight, bias, source, mask, y, length, width, stride_row, stride_t,
    SILU: tl.constexpr, K: tl.constexpr, BT: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """y (B, L, E)."""
    row, t, has_t, e, has_e = tile_of(length, width, BT, BE)
    inside = has_t
    if mask is not None:
        inside = tl.load(mask + row * length + t, mask=has_t, other=0) != 0
    total = tl.zeros([BT, BE], tl.float32)
    for j in tl.static_range(K):
        at = row_of(source, t, row, length, j, inside, K)
        tap = tl.load(weight + e * K + K - 1 - j, mask=has_e, other=0.0)
        total += tap[None, :] * load_row(x, state, at, row, length, width, stride_row, stride_t, e, has_e, K)
    if bias is not None:
        total += tl.load(bias + e, mask=has_e, other=0.0)[None, :]
    if SILU:
        total = total / (1.0 + tl.exp(-total))
    total = tl.where(inside[:, None], total, 0.0)
    tl.store(y + (row * length + t)[:, None] * width + e[None, :], total, mask=has_t[:, None] & has_e[None, :])


@triton.jit
def before_activation(
    x, state, weight, bias, source, mask, gy, ungated, part, length, width, stride_row, stride_t,
    SILU: tl.constexpr, K: tl.constexpr, BT: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """The gradient before the activation, (B, L, E) in float32; a tile's share of the taps' and (last) the bias's, (B, tiles, K+1, E)."""
    row, t, has_t, e, has_e = tile_of(length, width, BT, BE)
    inside = has_t
    if mask is not None:
        inside = tl.load(mask + row * length + t, mask=has_t, other=0) != 0
    spot = (row * length + t)[:, None] * width + e[None, :]
    grad = tl.load(gy + spot, mask=inside[:, None] & has_e[None, :], other=0.0).to(tl.float32)
    if SILU:
        total = tl.zeros([BT, BE], tl.float32)
        for j in tl.static_range(K):
            at = row_of(source, t, row, length, j, inside, K)
            tap = tl.load(weight + e * K + K - 1 - j, mask=has_e, other=0.0)
            total += tap[None, :] * load_row(x, state, at, row, length, width, stride_row, stride_t, e, has_e, K)
        if bias is not None:
            total += tl.load(bias + e, mask=has_e, other=0.0)[None, :]
        s = 1.0 / (1.0 + tl.exp(-total))
        grad *= s * (1.0 + total * (1.0 - s))
    tl.store(ungated + spot, grad, mask=has_t[:, None] & has_e[None, :])
    own = part + (row * tl.num_programs(0) + tl.program_id(0)) * (K + 1) * width + e
    for j in tl.static_range(K):
        at = row_of(source, t, row, length, j, inside, K)
        met = load_row(x, state, at, row, length, width, stride_row, stride_t, e, has_e, K)
        tl.store(own + (K - 1 - j) * width, tl.sum(grad * met, axis=0), mask=has_e)
    tl.store(own + K * width, tl.sum(grad, axis=0), mask=has_e)


@triton.jit
def backward(
    ungated, weight, target, glast, last_row, gx, gstate, length, width,
    K: tl.constexpr, BT: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """The gradient of every row of the history: from the positions that met it, and from its place in the last state, if it has one."""
    row, at, has_at, e, has_e = tile_of(length + K - 1, width, BT, BE)
    total = tl.zeros([BT, BE], tl.float32)
    for j in tl.static_range(K):
        if target is None:
            t = at - (K - 1) + j
            met = has_at & (t >= 0) & (t < length)
        else:
            t = tl.load(target + (row * (length + K - 1) + at) * K + j, mask=has_at, other=-1)
            met = t >= 0
        tap = tl.load(weight + e * K + K - 1 - j, mask=has_e, other=0.0)
        where = ungated + (row * length + t)[:, None] * width + e[None, :]
        total += tap[None, :] * tl.load(where, mask=met[:, None] & has_e[None, :], other=0.0)
    if glast is not None:
        if last_row is None:
            place = tl.where(has_at, at - length, -1)
        else:
            place = tl.load(last_row + row * (length + K - 1) + at, mask=has_at, other=-1)
        kept = (place >= 0)[:, None] & has_e[None, :]
        total += tl.load(glast + (row * (K - 1) + place)[:, None] * width + e[None, :], mask=kept, other=0.0).to(tl.float32)
    old, new = has_at & (at < K - 1), has_at & (at >= K - 1)
    tl.store(gstate + (row * (K - 1) + at)[:, None] * width + e[None, :], total, mask=old[:, None] & has_e[None, :])
    tl.store(gx + (row * length + at - (K - 1))[:, None] * width + e[None, :], total, mask=new[:, None] & has_e[None, :])
