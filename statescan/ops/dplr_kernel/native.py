"""The recurrence in C++, in double precision; the backward pass keeps every sqrt(L)-th state of a channel at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from statescan.ops import native_gate as gate
from statescan.ops import pages
from statescan.ops.dplr_kernel import op


def _refuse(c: Tensor, d: Tensor, p: Tensor, q: Tensor, b: Tensor, length: int) -> str | None:
    return gate.refuse((torch.complex128,), c=c, d=d, p=p, q=q, b=b)


def _plain(*tensors: Tensor) -> list[Tensor]:
    """As they lie in memory: contiguous, with conjugation carried out."""
    return [tensor.resolve_conj().resolve_neg().contiguous() for tensor in tensors]


def _sizes(d: Tensor, p: Tensor, length: int) -> tuple[int, int, int, int]:
    return d.shape[0], d.shape[1], p.shape[1], length


def _forward(c: Tensor, d: Tensor, p: Tensor, q: Tensor, b: Tensor, length: int) -> Tensor:
    assert gate.module is not None
    inputs = _plain(c, d, p, q, b)
    k = pages.empty(d.shape[0], length, dtype=torch.float64)
    gate.module.dplr_kernel(gate.threads(d.numel() * length), _sizes(d, p, length), [t.data_ptr() for t in (*inputs, k)])
    return k


def _backward(gk: Tensor, c: Tensor, d: Tensor, p: Tensor, q: Tensor, b: Tensor, length: int) -> tuple[Tensor, ...]:
    assert gate.module is not None
    inputs = _plain(c, d, p, q, b)
    gk = gk.contiguous()
    gradients = [torch.empty_like(t) for t in inputs]
    gate.module.dplr_kernel_backward(
        gate.threads(3 * d.numel() * length), _sizes(d, p, length), [t.data_ptr() for t in (*inputs, gk, *gradients)]
    )
    return tuple(gradients)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.length = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, gk: Tensor) -> tuple[Tensor | None, ...]:
    return *_kernel_backward(gk, *ctx.saved_tensors, ctx.length), None


_INPUTS = "Tensor c, Tensor d, Tensor p, Tensor q, Tensor b, SymInt length"
_kernel, _kernel_backward = gate.register(
    "dplr_kernel",
    f"({_INPUTS}) -> Tensor",
    _forward,  # type: ignore[arg-type]
    lambda c, d, p, q, b, length: d.real.new_empty(d.shape[0], length),
    f"(Tensor gk, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    lambda gk, *inputs: tuple(t.new_empty(t.shape) for t in inputs[:5]),
    _setup,
    _gradients,
)


@op.implementation("native", _refuse)
def native(c: Tensor, d: Tensor, p: Tensor, q: Tensor, b: Tensor, length: int) -> Tensor:
    """K (D, L)."""
    run = _forward if gate.direct(c, d, p, q, b) else _kernel
    k: Tensor = run(c, d, p, q, b, length)
    return k
