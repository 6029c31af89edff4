"""The selective scan as Triton kernels: chunks of time side by side, the backward from the saved state before each chunk."""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.ops import native_gate, triton_gate
from statescan.ops.selective_scan.recorded import implement
from statescan.ops.triton_gate import flags, power_of_two

CHUNK = 32
MAX_N = 256
TILE = 512
"""Numbers of a tile (channels by states): with two warps, eight a thread, so that what ptxas assigns for sm_90 fits the registers."""


def _refuse(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, delta_weight: Tensor | None,
    delta_bias: Tensor | None, delta_softplus: bool, state: Tensor, reset_to: Tensor | None, reset: Tensor | None, mask: Tensor | None,
    interval: Tensor | float | None, return_states: bool,
) -> str | None:  # fmt: skip
    if return_states:
        return "return_states asks for every state; the Triton kernel keeps one a chunk"
    if A.shape[1] > MAX_N:
        return f"N is {A.shape[1]}; the Triton kernel takes up to {MAX_N}"
    time = interval if isinstance(interval, Tensor) else None
    return triton_gate.refuse(
        (torch.float32, torch.bfloat16), x=x, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_weight=delta_weight,
        delta_bias=delta_bias, state=state, reset_to=reset_to, interval=time,
    )  # fmt: skip


class _Call:
    """The arguments of the kernels for one set of inputs, and the shapes of their work."""

    def __init__(
        self, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, delta_bias: Tensor | None,
        reset_to: Tensor | None, reset: Tensor | None, mask: Tensor | None, interval: Tensor | None, softplus: bool, unit: float,
    ) -> None:  # fmt: skip
        from statescan.ops.selective_scan import triton_kernels

        self.kernels = triton_kernels
        x, delta, B, C = (native_gate.rows(t) for t in (x, delta, B, C))
        z = native_gate.rows_or_none(z)
        D, delta_bias, reset_to, interval = (None if t is None else t.contiguous() for t in (D, delta_bias, reset_to, interval))
        self.batch, self.length, self.width = x.shape
        self.n, self.groups = A.shape[1], B.shape[2]
        self.inputs = triton_kernels.Inputs(  # type: ignore[call-arg]
            x, delta, A.contiguous(), B, C, D, z, delta_bias, reset_to, flags(reset), flags(mask), interval, unit, *x.stride()[:2],
            *delta.stride()[:2], *((0, 0) if z is None else z.stride()[:2]), *B.stride()[:3], *C.stride()[:3], self.length, self.width,
            self.n, self.groups,
        )  # fmt: skip
        self.chunks = _chunks(self.length)
        states = power_of_two(self.n)
        channels = min(power_of_two(self.width // self.groups), max(1, TILE // states))
        self.blocks = self.groups * -(-(self.width // self.groups) // channels)
        self.items = self.batch * self.blocks * self.chunks
        self.tile = {"CHUNK": CHUNK, "BE": channels, "BN": states, "SOFTPLUS": softplus, "num_warps": 2}

    def states(self) -> Tensor:
        """(B, chunks, E, N), uninitialised."""
        return self.inputs.x.new_empty((self.batch, self.chunks, self.width, self.n), dtype=torch.float32)

    def carry(self, ends: Tensor, product: Tensor, initial: Tensor, back: bool) -> Tensor:
        """In place: ``ends`` becomes what enters each chunk. Returns what leaves the last one, (B, E, N)."""
        last, size = torch.empty_like(ends[:, 0], memory_format=torch.contiguous_format), self.width * self.n
        grid = (self.batch * -(-size // TILE),)
        self.kernels.carry[grid](ends, product, initial.contiguous(), last, self.chunks, size, BACK=back, BLOCK=TILE, num_warps=4)
        return last


def _chunks(length: int) -> int:
    return (length + CHUNK - 1) // CHUNK


def _forward(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, delta_bias: Tensor | None,
    state: Tensor, reset_to: Tensor | None, reset: Tensor | None, mask: Tensor | None, interval: Tensor | None, softplus: bool,
    unit: float, save: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """y, the last state, and the state before each chunk (B, chunks, E, N) if ``save``."""
    call = _Call(x, delta, A, B, C, D, z, delta_bias, reset_to, reset, mask, interval, softplus, unit)
    y, before = torch.empty(x.shape, dtype=x.dtype, device=x.device), call.states()
    last = torch.empty_like(before[:, 0], memory_format=torch.contiguous_format)
    with triton_gate.on(x):
        if call.chunks == 1:
            before[:, 0] = state
        else:
            product = call.states()
            call.kernels.ends[(call.items,)](call.inputs, before, product, **call.tile)
            call.carry(before, product, state, back=False)
        call.kernels.outputs[(call.items,)](call.inputs, before, y, last, **call.tile)
    return y, last, before if save else before.new_empty(0)


def _backward(
    gy: Tensor, glast: Tensor | None, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, reset_to: Tensor | None, reset: Tensor | None, mask: Tensor | None, interval: Tensor | None,
    chunks: Tensor, softplus: bool, unit: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x, delta, A, B, C, D, z, delta_bias, state, reset_to, interval; empty where there is no such input."""
    call = _Call(x, delta, A, B, C, D, z, delta_bias, reset_to, reset, mask, interval, softplus, unit)
    gy = gy.contiguous()

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=x.device)

    grad = call.kernels.Gradients(
        x=torch.empty(x.shape, dtype=x.dtype, device=x.device),
        delta=torch.empty(x.shape, dtype=delta.dtype, device=x.device),
        z=None if z is None else torch.empty(x.shape, dtype=z.dtype, device=x.device),
        A=call.states(),
        B=empty(call.batch, call.length, call.blocks, call.n),
        C=empty(call.batch, call.length, call.blocks, call.n),
        D=None if D is None else empty(call.batch, call.chunks, call.width),
        bias=None if delta_bias is None else empty(call.batch, call.chunks, call.width),
        reset_to=None if reset_to is None else call.states(),
        interval=None if interval is None else empty(call.batch, call.length, call.blocks),
    )
    after, product = call.states(), call.states()
    glast = empty(call.batch, call.width, call.n).zero_() if glast is None else glast
    programs = triton_gate.programs(x, call.items)
    scratch = empty(programs, CHUNK, call.tile["BE"], call.tile["BN"])
    with triton_gate.on(x):
        call.kernels.pulls[(call.items,)](call.inputs, gy, after, product, **call.tile)
        gstate = call.carry(after, product, glast, back=True)
        call.kernels.gradients[(programs,)](call.inputs, grad, gy, chunks, after, scratch, call.items, **call.tile)
    per_group = (call.groups, call.blocks // call.groups)
    found = (
        grad.x, grad.delta, grad.A.sum((0, 1)), grad.B.unflatten(2, per_group).sum(3).to(B.dtype),
        grad.C.unflatten(2, per_group).sum(3).to(C.dtype), None if grad.D is None else grad.D.sum((0, 1)), grad.z,
        None if grad.bias is None else grad.bias.sum((0, 1)), gstate, None if grad.reset_to is None else grad.reset_to.sum(1),
        None if grad.interval is None else grad.interval.sum(2),
    )  # fmt: skip
    return tuple(empty(0) if gradient is None else gradient for gradient in found)


def _states(batch: int, length: int, width: int, n: int) -> tuple[int, ...]:
    return batch, _chunks(length), width, n


implement("triton", _refuse, _forward, _backward, _states, devices=("cpu", "cuda"))
