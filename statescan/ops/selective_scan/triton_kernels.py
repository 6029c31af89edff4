"""The selective scan on a GPU. Time is cut into chunks that run side by side, in three steps:

1. ``ends``: each chunk from a state of zeros, to its end, and the product of its decays;
2. ``carry``: the true state before each chunk, from those two, one chunk after the other;
3. ``outputs``: each chunk again, from its true state.

The backward does the same with gradients: ``pulls`` (what a chunk hands to the state before it), ``carry`` from the last chunk to the
first, then ``gradients``, which forms the states of a chunk again and walks back over them. Every sum over programs is written in parts
and added up by the caller, so results repeat exactly.

A program holds BE channels of one group by BN states (N, padded) in registers. Item: (row, block of channels, chunk).
"""
# ruff: noqa: RET505 - a branch on None is taken when compiling, and only inside its else the other one does not exist

from __future__ import annotations

from typing import Any, NamedTuple

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]


class Inputs(NamedTuple):
    """Pointers (None where absent), and sizes; ``stride_*`` of rows and positions. The last axis of every tensor is contiguous."""

    x: Any
    delta: Any
    A: Any
    B: Any
    C: Any
    D: Any
    z: Any
    bias: Any
    reset_to: Any
    reset: Any
    mask: Any
    interval: Any
    unit: Any
    stride_x: Any
    stride_xt: Any
    stride_delta: Any
    stride_deltat: Any
    stride_z: Any
    stride_zt: Any
    stride_B: Any
    stride_Bt: Any
    stride_Bg: Any
    stride_C: Any
    stride_Ct: Any
    stride_Cg: Any
    length: Any
    width: Any
    n: Any
    groups: Any


class Place(NamedTuple):
    """Where an item works."""

    row: Any
    block: Any
    blocks: Any
    group: Any
    chunk: Any
    chunks: Any
    channel: Any
    has_channel: Any
    tile: Any
    has_tile: Any
    states: Any
    has_states: Any


@triton.jit
def place(given, item, CHUNK: tl.constexpr, BE: tl.constexpr, BN: tl.constexpr):
    """Row, block and chunk of an item; offsets of its channels, and of its tile in an (E, N) matrix."""
    chunks = tl.cdiv(given.length, CHUNK)
    members = given.width // given.groups
    per_group = tl.cdiv(members, BE)
    blocks = per_group * given.groups
    block = item // chunks % blocks
    inside = block % per_group * BE + tl.arange(0, BE)
    states = tl.arange(0, BN)
    channel = block // per_group * members + inside
    has_channel, has_states = inside < members, states < given.n
    tile = channel[:, None] * given.n + states[None, :]
    row = (item // (chunks * blocks)).to(tl.int64)
    chunk = (item % chunks).to(tl.int64)  # so positions are wide too: times a stride they pass 2^31 in a long sequence
    has_tile = has_channel[:, None] & has_states[None, :]
    return Place(row, block, blocks, block // per_group, chunk, chunks, channel, has_channel, tile, has_tile, states, has_states)


@triton.jit
def load_A(given, at):
    """A of the tile; padding has decay 1 and never an input."""
    return tl.load(given.A + at.tile, mask=at.has_tile, other=0.0)


@triton.jit
def load_parameter(pointer, at):
    """(E,) of the tile's channels; zeros where there is no such parameter."""
    if pointer is None:
        return tl.zeros_like(at.channel).to(tl.float32)
    else:
        return tl.load(pointer + at.channel, mask=at.has_channel, other=0.0)


@triton.jit
def load_reset_to(given, at):
    """The state after a reset."""
    if given.reset_to is None:
        return tl.zeros_like(at.tile).to(tl.float32)
    else:
        return tl.load(given.reset_to + at.row * given.width * given.n + at.tile, mask=at.has_tile, other=0.0)


@triton.jit
def exists_at(given, at, t):
    """1 if the position exists, else 0 (a number: Triton's interpreter does not combine a truth value with a block of them)."""
    if given.mask is None:
        return 1
    else:
        return tl.load(given.mask + at.row * given.length + t).to(tl.int32)


@triton.jit
def both(block, number):
    """The block of truth values, all false where the number is 0."""
    return tl.where(block, number, 0) != 0


@triton.jit
def reset_at(given, at, t):
    """1 if the state returns to ``reset_to`` before the position, else 0."""
    if given.reset is None:
        return 0
    else:
        return tl.load(given.reset + at.row * given.length + t).to(tl.int32)


@triton.jit
def time_at(given, at, t, exists):
    """The interval of a position, in units of the model's step."""
    if given.interval is None:
        return given.unit
    else:
        return tl.load(given.interval + at.row * given.length + t, mask=exists != 0, other=0.0)


@triton.jit
def load_x(given, at, t, exists):
    """x_t (BE,), zero where the position does not exist."""
    where = given.x + at.row * given.stride_x + t * given.stride_xt + at.channel
    return tl.load(where, mask=both(at.has_channel, exists), other=0.0).to(tl.float32)


@triton.jit
def load_B(given, at, t, exists):
    """B_t (BN,)."""
    where = given.B + at.row * given.stride_B + t * given.stride_Bt + at.group * given.stride_Bg + at.states
    return tl.load(where, mask=both(at.has_states, exists), other=0.0).to(tl.float32)


@triton.jit
def load_C(given, at, t, exists):
    """C_t (BN,)."""
    where = given.C + at.row * given.stride_C + t * given.stride_Ct + at.group * given.stride_Cg + at.states
    return tl.load(where, mask=both(at.has_states, exists), other=0.0).to(tl.float32)


@triton.jit
def load_z(given, at, t, exists):
    """z_t (BE,)."""
    where = given.z + at.row * given.stride_z + t * given.stride_zt + at.channel
    return tl.load(where, mask=both(at.has_channel, exists), other=0.0).to(tl.float32)


@triton.jit
def sigmoid(v):
    """1 / (1 + exp(-v)), without overflow."""
    e = tl.exp(-tl.abs(v))
    return tl.where(v >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def load_step(given, at, t, exists, bias, SOFTPLUS: tl.constexpr):
    """The positive step before the interval multiplies it (zero where the position does not exist), and the raw delta."""
    where = given.delta + at.row * given.stride_delta + t * given.stride_deltat + at.channel
    raw = tl.load(where, mask=both(at.has_channel, exists), other=0.0).to(tl.float32) + bias
    step = raw
    if SOFTPLUS:
        e = tl.exp(-tl.abs(raw))
        one = 1.0 + e
        # log(1 + e) with the digits of e that the sum loses
        log = tl.where(one == 1.0, e, tl.log(one) * (e / tl.where(one == 1.0, 1.0, one - 1.0)))
        step = tl.maximum(raw, 0.0) + log
    return tl.where(both(at.has_channel, exists), step, 0.0), raw


@triton.jit
def ends(given, end, product, CHUNK: tl.constexpr, BE: tl.constexpr, BN: tl.constexpr, SOFTPLUS: tl.constexpr):
    """The state at the end of a chunk that began with zeros, and the product of its decays; both (B, chunks, E, N)."""
    at = place(given, tl.program_id(0), CHUNK, BE, BN)
    A, bias, reset_to = load_A(given, at), load_parameter(given.bias, at), load_reset_to(given, at)
    h = tl.zeros([BE, BN], tl.float32)
    decays = tl.full([BE, BN], 1.0, tl.float32)
    first = at.chunk * CHUNK
    for t in range(first, tl.minimum(first + CHUNK, given.length)):
        exists, reset = exists_at(given, at, t), reset_at(given, at, t)
        step, _ = load_step(given, at, t, exists, bias, SOFTPLUS)
        step *= time_at(given, at, t, exists)
        decay = tl.exp(step[:, None] * A)
        h = tl.where(reset != 0, reset_to, h)
        h = decay * h + (step * load_x(given, at, t, exists))[:, None] * load_B(given, at, t, exists)[None, :]
        decays = tl.where(reset != 0, 0.0, decays) * decay
    where = (at.row * at.chunks + at.chunk) * given.width * given.n + at.tile
    tl.store(end + where, h, mask=at.has_tile)
    tl.store(product + where, decays, mask=at.has_tile)


@triton.jit
def carry(end, product, initial, last, chunks, size, BACK: tl.constexpr, BLOCK: tl.constexpr):
    """In place, ``end`` becomes what enters each chunk: from ``initial``, the first chunk first (BACK: the last first). Leaves ``last``."""
    per_row = tl.cdiv(size, BLOCK)
    row = (tl.program_id(0) // per_row).to(tl.int64)
    where = tl.program_id(0) % per_row * BLOCK + tl.arange(0, BLOCK)
    inside = where < size
    h = tl.load(initial + row * size + where, mask=inside, other=0.0)
    for i in range(chunks):
        chunk = i
        if BACK:
            chunk = chunks - 1 - i
        here = (row * chunks + chunk) * size + where
        own = tl.load(end + here, mask=inside, other=0.0)
        tl.store(end + here, h, mask=inside)
        h = tl.load(product + here, mask=inside, other=0.0) * h + own
    tl.store(last + row * size + where, h, mask=inside)


@triton.jit
def outputs(given, before, y, last, CHUNK: tl.constexpr, BE: tl.constexpr, BN: tl.constexpr, SOFTPLUS: tl.constexpr):
    """y (B, L, E) of a chunk, from the state before it (B, chunks, E, N); the last chunk leaves the last state (B, E, N)."""
    at = place(given, tl.program_id(0), CHUNK, BE, BN)
    A, bias, reset_to = load_A(given, at), load_parameter(given.bias, at), load_reset_to(given, at)
    D = load_parameter(given.D, at)
    size = given.width * given.n
    h = tl.load(before + (at.row * at.chunks + at.chunk) * size + at.tile, mask=at.has_tile, other=0.0)
    first = at.chunk * CHUNK
    for t in range(first, tl.minimum(first + CHUNK, given.length)):
        exists = exists_at(given, at, t)
        x = load_x(given, at, t, exists)
        step, _ = load_step(given, at, t, exists, bias, SOFTPLUS)
        step *= time_at(given, at, t, exists)
        h = tl.where(reset_at(given, at, t) != 0, reset_to, h)
        h = tl.exp(step[:, None] * A) * h + (step * x)[:, None] * load_B(given, at, t, exists)[None, :]
        out = tl.sum(h * load_C(given, at, t, exists)[None, :], axis=1) + D * x
        if given.z is not None:
            z = load_z(given, at, t, exists)
            out *= z * sigmoid(z)
        tl.store(y + (at.row * given.length + t) * given.width + at.channel, out, mask=at.has_channel)
    if at.chunk == at.chunks - 1:
        tl.store(last + at.row * size + at.tile, h, mask=at.has_tile)


@triton.jit
def load_grad(given, at, gy, t, exists):
    """The gradient of y_t before the gate (BE,)."""
    grad = tl.load(gy + (at.row * given.length + t) * given.width + at.channel, mask=both(at.has_channel, exists), other=0.0).to(tl.float32)
    if given.z is not None:
        z = load_z(given, at, t, exists)
        grad *= z * sigmoid(z)
    return grad


@triton.jit
def pulls(given, gy, pull, product, CHUNK: tl.constexpr, BE: tl.constexpr, BN: tl.constexpr, SOFTPLUS: tl.constexpr):
    """What the outputs of a chunk hand to the state before it, and the product of the chunk's decays; both (B, chunks, E, N)."""
    at = place(given, tl.program_id(0), CHUNK, BE, BN)
    A, bias = load_A(given, at), load_parameter(given.bias, at)
    own = tl.zeros([BE, BN], tl.float32)
    decays = tl.full([BE, BN], 1.0, tl.float32)
    first = at.chunk * CHUNK
    for t in range(first, tl.minimum(first + CHUNK, given.length)):
        exists = exists_at(given, at, t)
        step, _ = load_step(given, at, t, exists, bias, SOFTPLUS)
        step *= time_at(given, at, t, exists)
        decays = tl.where(reset_at(given, at, t) != 0, 0.0, decays) * tl.exp(step[:, None] * A)
        own += decays * load_grad(given, at, gy, t, exists)[:, None] * load_C(given, at, t, exists)[None, :]
    where = (at.row * at.chunks + at.chunk) * given.width * given.n + at.tile
    tl.store(pull + where, own, mask=at.has_tile)
    tl.store(product + where, decays, mask=at.has_tile)


class Gradients(NamedTuple):
    """Where gradients go. Of x, delta, z: (B, L, E). Parts, float32: B and C (B, L, blocks, N), A and reset_to (B, chunks, E, N), D and
    bias (B, chunks, E), interval (B, L, blocks)."""

    x: Any
    delta: Any
    z: Any
    A: Any
    B: Any
    C: Any
    D: Any
    bias: Any
    reset_to: Any
    interval: Any


@triton.jit
def gradients(
    given, grad, gy, before, after, scratch, items, CHUNK: tl.constexpr, BE: tl.constexpr, BN: tl.constexpr, SOFTPLUS: tl.constexpr
):
    """All gradients of a chunk, from the state before it and the gradient ``after`` of the state at its end (both (B, chunks, E, N)).

    A program takes every num_programs-th item and keeps the states of one chunk in its own part of ``scratch``.
    """
    tile = tl.arange(0, BE)[:, None] * BN + tl.arange(0, BN)[None, :]
    kept = scratch + tl.program_id(0).to(tl.int64) * CHUNK * BE * BN + tile
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        at = place(given, item, CHUNK, BE, BN)
        A, bias, reset_to = load_A(given, at), load_parameter(given.bias, at), load_reset_to(given, at)
        D = load_parameter(given.D, at)
        here = (at.row * at.chunks + at.chunk) * given.width * given.n + at.tile
        first = at.chunk * CHUNK
        count = tl.minimum(CHUNK, given.length - first)

        h = tl.load(before + here, mask=at.has_tile, other=0.0)
        for i in range(count):
            exists = exists_at(given, at, first + i)
            step, _ = load_step(given, at, first + i, exists, bias, SOFTPLUS)
            step *= time_at(given, at, first + i, exists)
            h = tl.where(reset_at(given, at, first + i) != 0, reset_to, h)
            tl.store(kept + i * BE * BN, h)
            pushed = (step * load_x(given, at, first + i, exists))[:, None] * load_B(given, at, first + i, exists)[None, :]
            h = tl.exp(step[:, None] * A) * h + pushed
        tl.debug_barrier()

        g = tl.load(after + here, mask=at.has_tile, other=0.0)
        grad_A = tl.zeros([BE, BN], tl.float32)
        grad_reset_to = tl.zeros([BE, BN], tl.float32)
        grad_D = tl.zeros([BE], tl.float32)
        grad_bias = tl.zeros([BE], tl.float32)
        for j in range(count):
            t = first + count - 1 - j
            exists = exists_at(given, at, t)
            x, B, C = load_x(given, at, t, exists), load_B(given, at, t, exists), load_C(given, at, t, exists)
            plain, raw = load_step(given, at, t, exists, bias, SOFTPLUS)
            time = time_at(given, at, t, exists)
            step = plain * time
            decay = tl.exp(step[:, None] * A)
            previous = tl.load(kept + (count - 1 - j) * BE * BN)
            h = decay * previous + (step * x)[:, None] * B[None, :]
            out = load_grad(given, at, gy, t, exists)
            g += out[:, None] * C[None, :]

            through = tl.sum(g * B[None, :], axis=1)
            faded = g * decay
            turned = faded * previous
            grad_A += turned * step[:, None]
            grad_step = x * through + tl.sum(turned * A, axis=1)
            grad_x = step * through + D * out
            grad_D += x * out
            spot = (at.row * given.length + t) * given.width + at.channel
            tl.store(grad.x + spot, grad_x, mask=at.has_channel)
            if given.z is not None:
                z = load_z(given, at, t, exists)
                s = sigmoid(z)
                gated = tl.load(gy + spot, mask=both(at.has_channel, exists), other=0.0).to(tl.float32)
                ungated = tl.sum(h * C[None, :], axis=1) + D * x
                tl.store(grad.z + spot, gated * ungated * s * (1.0 + z * (1.0 - s)), mask=at.has_channel)
            part = (at.row * given.length + t) * at.blocks + at.block
            if given.interval is not None:
                tl.store(grad.interval + part, tl.sum(grad_step * plain, axis=0))
            grad_raw = grad_step * time
            if SOFTPLUS:
                grad_raw *= sigmoid(raw)
            grad_raw = tl.where(both(at.has_channel, exists), grad_raw, 0.0)
            grad_bias += grad_raw
            tl.store(grad.delta + spot, grad_raw, mask=at.has_channel)
            tl.store(grad.B + part * given.n + at.states, tl.sum(g * (step * x)[:, None], axis=0), mask=at.has_states)
            tl.store(grad.C + part * given.n + at.states, tl.sum(h * out[:, None], axis=0), mask=at.has_states)

            reset = reset_at(given, at, t)
            grad_reset_to += tl.where(reset != 0, faded, 0.0)
            g = tl.where(reset != 0, 0.0, faded)

        tl.store(grad.A + here, grad_A, mask=at.has_tile)
        channels = (at.row * at.chunks + at.chunk) * given.width + at.channel
        if given.D is not None:
            tl.store(grad.D + channels, grad_D, mask=at.has_channel)
        if given.bias is not None:
            tl.store(grad.bias + channels, grad_bias, mask=at.has_channel)
        if given.reset_to is not None:
            tl.store(grad.reset_to + here, grad_reset_to, mask=at.has_tile)
        tl.debug_barrier()
