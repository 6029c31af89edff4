"""What the compiled kernels of the selective scan share: how torch records them, and how the op calls them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from statescan.ops import native_gate as gate
from statescan.ops.selective_scan import op
from statescan.ops.selective_scan.steps import multiplied

_INPUTS = "Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias"
_LINE = "Tensor? reset_to, Tensor? reset, Tensor? mask, Tensor? interval"


def implement(
    kind: str,
    refuse: Callable[..., str | None],
    forward: Callable[..., tuple[Tensor, Tensor, Tensor]],
    backward: Callable[..., tuple[Tensor, ...]],
    states: Callable[[int, int, int, int], tuple[int, ...]],
    *,
    multiplies: Callable[[Tensor, Tensor], bool] = lambda delta, delta_weight: False,
    devices: str | Sequence[str] = "cpu",
) -> None:
    """Add an implementation of this kind.

    Args:
        kind: its name.
        refuse: why it cannot take a call.
        forward: (x, delta, A, B, C, D, z, delta_bias, state, reset_to, reset, mask, interval, softplus, unit, save) -> y, the last state,
            and, if ``save``, the state before each chunk.
        backward: (gy, glast, all of these but the state and ``save``, with the chunks' states behind the interval) -> gradients of x,
            delta, A, B, C, D, z, delta_bias, state, reset_to, interval; empty where there is no such input.
        states: (B, L, E, N) -> shape of the chunks' states.
        multiplies: (delta, delta_weight) -> whether forward would rather take the factors, the weight as its last argument.
        devices: where it runs.
    """

    # Between forward and backward the chunks' states are one row of numbers: a tracer would ask whether their number is one.
    def recorded_forward(x: Tensor, delta: Tensor, A: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        y, last, chunks = forward(x, delta, A, *rest)
        return y, last, chunks.view(-1)

    def recorded_backward(gy: Tensor, glast: Tensor | None, x: Tensor, delta: Tensor, A: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        *inputs, chunks, softplus, unit = rest
        shape = states(x.shape[0], x.shape[1], x.shape[2], A.shape[1])
        return backward(gy, glast, x, delta, A, *inputs, chunks.view(shape), softplus, unit)

    def fake(x: Tensor, delta: Tensor, A: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        (batch, length, width), n = x.shape, A.shape[1]
        shapes = ((batch, width, n), (math.prod(states(batch, length, width, n)) if rest[-1] else 0,))
        last, chunks = (x.new_empty(shape, dtype=torch.float32) for shape in shapes)
        return x.new_empty(x.shape), last, chunks

    def fake_backward(
        gy: Tensor, glast: Tensor | None, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
        delta_bias: Tensor | None, reset_to: Tensor | None, reset: Tensor | None, mask: Tensor | None, interval: Tensor | None,
        chunks: Tensor, softplus: bool, unit: float,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        state = x.new_empty((x.shape[0], x.shape[2], A.shape[1]), dtype=torch.float32)
        return tuple(gate.fake_like(t, x) for t in (x, delta, A, B, C, D, z, delta_bias, state, reset_to, interval))

    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, delta, A, B, C, D, z, bias, _, reset_to, reset, mask, interval, ctx.softplus, ctx.unit, _ = inputs
        ctx.mark_non_differentiable(output[2])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, delta, A, B, C, D, z, bias, reset_to, reset, mask, interval, output[2])

    def gradients(ctx: Any, gy: Tensor | None, glast: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        x, delta, A, B, C, D, z, bias, reset_to, reset, mask, interval, chunks = ctx.saved_tensors
        if gy is None:
            gy = torch.zeros_like(x)
        found = scan_backward(gy, glast, x, delta, A, B, C, D, z, bias, reset_to, reset, mask, interval, chunks, ctx.softplus, ctx.unit)
        present = (x, delta, A, B, C, D, z, bias, x, reset_to, interval)
        g = [gradient if tensor is not None else None for gradient, tensor in zip(found, present, strict=True)]
        return (*g[:10], None, None, g[10], None, None, None)

    scan, scan_backward = gate.register(
        "selective_scan",
        f"({_INPUTS}, Tensor state, {_LINE}, bool softplus, float unit, bool save) -> (Tensor, Tensor, Tensor)",
        recorded_forward,
        fake,
        f"(Tensor gy, Tensor? glast, {_INPUTS}, {_LINE}, Tensor chunks, bool softplus, float unit) -> ({', '.join(['Tensor'] * 11)})",
        recorded_backward,
        fake_backward,
        setup,
        gradients,
        kind=kind,
        devices=devices,
    )

    @op.implementation(kind, refuse)
    def run(
        x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, delta_weight: Tensor | None,
        delta_bias: Tensor | None, delta_softplus: bool, state: Tensor, reset_to: Tensor | None, reset: Tensor | None,
        mask: Tensor | None, interval: Tensor | float | None, return_states: bool,
    ) -> tuple[Tensor, Tensor, None]:  # fmt: skip
        """y (B, L, E) and the last state (B, E, N)."""
        time = gate.floats(interval) if isinstance(interval, Tensor) else None
        unit = float(interval) if interval is not None and not isinstance(interval, Tensor) else 1.0
        A, D, delta_bias = A.float(), gate.floats(D), gate.floats(delta_bias)
        direct = gate.direct(x, delta, A, B, C, D, z, delta_weight, delta_bias, state, reset_to, reset, mask, time)
        if delta_weight is not None and not (direct and multiplies(delta, delta_weight)):
            delta, delta_weight = multiplied(delta, delta_weight, mask), None
        inputs = (x, delta, A, B, C, D, z, delta_bias, state, reset_to)
        arguments = (*inputs, reset, mask, time, delta_softplus, unit, gate.needs_gradient(*inputs, time))
        if not direct:
            y, last, _ = scan(*arguments)
        else:
            y, last, _ = forward(*arguments) if delta_weight is None else forward(*arguments, delta_weight)
        return y, last, None
