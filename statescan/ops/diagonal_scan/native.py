"""The linear recurrence in C++, real or complex; the backward reads the outputs instead of running the scan again."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor

from statescan.ops import native_gate as gate
from statescan.ops import pages
from statescan.ops.diagonal_scan import op
from statescan.ops.native_gate import view


def _refuse(a: Tensor, b: Tensor, state: Tensor, reset_to: Tensor | None, reset: Tensor | None, mask: Tensor | None) -> str | None:
    return gate.refuse((torch.float32, torch.bfloat16, torch.complex64), a=a, b=b, state=state, reset_to=reset_to)


def _forward(
    a: Tensor, b: Tensor, state: Tensor, reset_to: Tensor | None, reset: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """h (B, L, M) and the last one (B, M); a is (B or 1, L or 1, M)."""
    assert gate.module is not None
    a, b, state, reset_to = gate.rows(a), gate.rows(b), gate.rows(state), gate.rows_or_none(reset_to)
    h, last = pages.empty(b.shape, dtype=b.dtype), pages.empty(state.shape, dtype=state.dtype)
    gate.module.diagonal_scan(
        gate.threads(2 * b.numel()), tuple(b.shape), view(a.expand(b.shape)), view(b), view(state), view(reset_to), view(reset), view(mask),
        view(h), view(last),
    )  # fmt: skip
    return h, last


def _backward(
    gh: Tensor, glast: Tensor | None, a: Tensor, state: Tensor, reset_to: Tensor | None, reset: Tensor | None, mask: Tensor | None,
    h: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of a, b, state and reset_to (empty if there is none). The states say all that is needed of b."""
    assert gate.module is not None
    a, state, reset_to = gate.rows(a), gate.rows(state), gate.rows_or_none(reset_to)
    gh, glast, h = gate.rows(gh), gate.rows_or_none(glast), gate.rows(h)
    gb, gstate, greset = pages.empty(h.shape, dtype=h.dtype), pages.empty(state.shape, dtype=state.dtype), gate.like(reset_to)
    batch, length, width = h.shape
    part = pages.empty((batch, a.shape[1], width), dtype=torch.complex64 if a.is_complex() else torch.float32)
    each = part.expand(h.shape) if a.shape[1] == 1 else part
    previous = None if reset is None and mask is None else pages.empty((batch, length), dtype=torch.int32)
    gate.module.diagonal_scan_backward(
        gate.threads(2 * h.numel()), tuple(h.shape), view(a.expand(h.shape)), view(h), view(state), view(reset_to), view(reset), view(mask),
        view(h), view(previous), view(gh), view(glast), view(gb), view(gstate), view(greset),
        (part.data_ptr(), view(part)[1], *_strides(each, length)),
    )  # fmt: skip
    # One row after the other: a fixed order of summation.
    ga = reduce(torch.add, part.unbind()).unsqueeze(0) if a.shape[0] == 1 and batch > 1 else part
    return ga.to(a.dtype), gb, gstate, gate.or_empty(greset)


def _strides(each: Tensor, length: int) -> tuple[int, ...]:
    """Strides; a stride of 0 along L says that the gradient of a is summed over positions."""
    return each.stride() if length > 1 else (each.stride(0), 0, each.stride(2))


def _fake(a: Tensor, b: Tensor, state: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return b.new_empty(b.shape), state.new_empty(state.shape)


def _fake_backward(
    gh: Tensor, glast: Tensor | None, a: Tensor, state: Tensor, reset_to: Tensor | None, reset: Tensor | None, mask: Tensor | None,
    h: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return gate.fake_like(a, h), gate.fake_like(h, h), gate.fake_like(state, h), gate.fake_like(reset_to, h)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    a, _, *rest = inputs
    ctx.save_for_backward(a, *rest, output[0])


def _gradients(ctx: Any, gh: Tensor | None, glast: Tensor | None) -> tuple[Tensor | None, ...]:
    a, state, reset_to, reset, mask, h = ctx.saved_tensors
    if gh is None:
        gh = torch.zeros_like(h)
    ga, gb, gstate, greset = _diagonal_backward(gh, glast, a, state, reset_to, reset, mask, h)
    return ga, gb, gstate, None if reset_to is None else greset, None, None


_REST = "Tensor state, Tensor? reset_to, Tensor? reset, Tensor? mask"
_diagonal, _diagonal_backward = gate.register(
    "diagonal_scan",
    f"(Tensor a, Tensor b, {_REST}) -> (Tensor, Tensor)",
    _forward,
    _fake,
    f"(Tensor gh, Tensor? glast, Tensor a, {_REST}, Tensor h) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
    _setup,
    _gradients,
)


@op.implementation("native", _refuse)
def native(
    a: Tensor, b: Tensor, state: Tensor, reset_to: Tensor | None, reset: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """h (B, L, *M) and the last one (B, *M). The trailing axes become one; a stays broadcast over B and L."""
    shape = b.shape
    a = a.expand(*a.shape[:2], *shape[2:]).flatten(2)
    flat = (a, b.flatten(2), state.flatten(1), None if reset_to is None else reset_to.flatten(1), reset, mask)
    h, last = _forward(*flat) if gate.direct(*flat) else _diagonal(*flat)
    return h.reshape(shape), last.reshape(state.shape)
