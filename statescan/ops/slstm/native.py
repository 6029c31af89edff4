"""The scalar LSTM in C++: a loop over time for each head, whose recurrent matrix is read from the cache once a position for all rows.

Saved for the backward are the gates with what the recurrence added, in float32, and the states every 64 positions: the states between
follow from these without a product.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor

from statescan.ops import native_gate as gate
from statescan.ops import pages
from statescan.ops.native_gate import view
from statescan.ops.slstm import op


def _refuse(
    gates: Tensor, R: Tensor, h: Tensor, c: Tensor, n: Tensor, m: Tensor, reset: Tensor | None, mask: Tensor | None
) -> str | None:  # fmt: skip
    dtypes = (torch.float32, torch.bfloat16)
    return gate.refuse(dtypes, gates=gates, R=R) or gate.refuse((torch.float32,), h=h, c=c, n=n, m=m)


def _call(gates: Tensor) -> tuple[Any, ...]:
    """Threads and sizes, as the binding takes them."""
    batch, length, _, heads, cells = gates.shape
    return gate.threads(2 * gates.numel() * cells), (batch, length, heads, cells)


def _chunks_shape(gates: Tensor) -> tuple[int, ...]:
    batch, length, *rest = gates.shape
    return batch, (length + gate.CHUNK - 1) // gate.CHUNK, *rest


def _forward(
    gates: Tensor, R: Tensor, state: Tensor, reset: Tensor | None, mask: Tensor | None, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """y (B, L, H, P) and the last state (4, B, H, P); if ``save``, the gates with R h, and the state before each chunk as one row."""
    assert gate.module is not None
    gates, R, state = gate.rows(gates), gate.rows(R), gate.rows(state)
    batch, length, _, heads, cells = gates.shape
    y, last = pages.empty((batch, length, heads, cells), dtype=gates.dtype), pages.empty(state.shape)
    raw = pages.empty(gates.shape if save else 0)
    chunks = pages.empty(_chunks_shape(gates) if save else 0)
    gate.module.slstm(
        *_call(gates), view(gates), view(R), view(state), view(reset), view(mask), view(y), view(last), view(raw if save else None),
        view(chunks if save else None),
    )  # fmt: skip
    return y, last, raw, chunks.view(-1)


def _backward(
    gy: Tensor, glast: Tensor | None, R: Tensor, reset: Tensor | None, mask: Tensor | None, raw: Tensor, chunks: Tensor
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of gates, R and state."""
    assert gate.module is not None
    gy, glast, R, chunks = gate.rows(gy), gate.rows_or_none(glast), gate.rows(R), chunks.view(_chunks_shape(raw))
    batch, _, _, heads, cells = raw.shape
    ggates, gstate = pages.empty(raw.shape, dtype=gy.dtype), pages.empty((4, batch, heads, cells))
    gR = pages.empty(((batch + gate.TOGETHER - 1) // gate.TOGETHER, *R.shape))
    gate.module.slstm_backward(
        *_call(raw), view(R), view(reset), view(mask), view(raw), view(chunks), view(gy), view(glast), view(ggates), view(gR), view(gstate)
    )
    # one block after the other: a fixed order of summation; without a row there is none
    return ggates, reduce(torch.add, gR.unbind(), torch.zeros(R.shape)), gstate


def _fake(
    gates: Tensor, R: Tensor, state: Tensor, reset: Tensor | None, mask: Tensor | None, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    chunks = _chunks_shape(gates)
    count = chunks[0] * chunks[1] * 4 * chunks[3] * chunks[4] if save else 0
    raw = state.new_empty(gates.shape if save else (0,))
    return gates.new_empty(gates.shape[:2] + gates.shape[3:]), state.new_empty(state.shape), raw, state.new_empty(count)


def _fake_backward(
    gy: Tensor, glast: Tensor | None, R: Tensor, reset: Tensor | None, mask: Tensor | None, raw: Tensor, chunks: Tensor
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    batch, _, _, heads, cells = raw.shape
    return gy.new_empty(raw.shape), R.new_empty(R.shape), raw.new_empty((4, batch, heads, cells))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, R, _, reset, mask, _ = inputs
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(R, reset, mask, *output[2:])
    ctx.dtype = inputs[0].dtype


def _gradients(ctx: Any, gy: Tensor | None, glast: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    R, reset, mask, raw, chunks = ctx.saved_tensors
    if gy is None:
        gy = torch.zeros(raw.shape[:2] + raw.shape[3:], dtype=ctx.dtype)
    return (*_slstm_backward(gy, glast, R, reset, mask, raw, chunks), None, None, None)


_slstm, _slstm_backward = gate.register(
    "slstm",
    "(Tensor gates, Tensor R, Tensor state, Tensor? reset, Tensor? mask, bool save) -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _fake,
    "(Tensor gy, Tensor? glast, Tensor R, Tensor? reset, Tensor? mask, Tensor raw, Tensor chunks) -> (Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
    _setup,
    _gradients,
)


@op.implementation("native", _refuse)
def native(
    gates: Tensor, R: Tensor, h: Tensor, c: Tensor, n: Tensor, m: Tensor, reset: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """y (B, L, H, P) and the last h, c, n and m, each (B, H, P)."""
    inputs = (gates, R.float(), torch.stack([h, c, n, m]))
    arguments = (*inputs, reset, mask, gate.needs_gradient(*inputs))
    y, last, _, _ = _forward(*arguments) if gate.direct(*inputs, reset, mask) else _slstm(*arguments)
    return (y, *last.unbind())
