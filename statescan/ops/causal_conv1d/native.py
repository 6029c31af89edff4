"""The causal convolution in C++: a stencil over rows, and where a timeline bends the past, a table of which rows each position meets."""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.ops import native_gate as gate
from statescan.ops import pages
from statescan.ops.causal_conv1d.recorded import implement
from statescan.ops.native_gate import view

MAX_TAPS = 16


def _refuse(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, state: Tensor, reset: Tensor | None, mask: Tensor | None
) -> str | None:  # fmt: skip
    if weight.shape[1] > MAX_TAPS:
        return f"there are {weight.shape[1]} taps; the native kernel takes up to {MAX_TAPS}"
    return gate.refuse((torch.float32, torch.bfloat16), x=x, weight=weight, bias=bias, state=state)


def _source(x: Tensor, taps: int, reset: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Room for the table of the rows that each position meets; a plain sequence needs none."""
    if reset is None and mask is None:
        return None
    return pages.empty((x.shape[0], x.shape[1] + 1, taps), dtype=torch.int32)


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, reset: Tensor | None, mask: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor]:  # fmt: skip
    assert gate.module is not None
    x, bias, state = gate.rows(x), gate.rows_or_none(bias), gate.rows(state)
    y, last = pages.empty(x.shape, dtype=x.dtype), pages.empty(state.shape, dtype=x.dtype)
    source = _source(x, weight.shape[1], reset, mask)
    gate.module.causal_conv1d(
        gate.threads(2 * x.numel() * weight.shape[1]), silu,
        (*x.shape, weight.shape[1]), view(x), view(weight), view(bias), view(state), view(reset),
        view(mask), view(source), view(y), view(last),
    )  # fmt: skip
    return y, last


def _backward(
    gy: Tensor, glast: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, reset: Tensor | None,
    mask: Tensor | None, silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, weight, bias (empty if there is none) and state."""
    assert gate.module is not None
    x, bias, state, gy, glast = gate.rows(x), gate.rows_or_none(bias), gate.rows(state), gate.rows(gy), gate.rows_or_none(glast)
    outputs = [gate.like(t) for t in (x, weight, bias, state)]
    taps = weight.shape[1]
    part = pages.empty(x.shape[0], taps + 1, x.shape[2])
    source = _source(x, taps, reset, mask)
    gate.module.causal_conv1d_backward(
        gate.threads(2 * x.numel() * taps), silu, (*x.shape, taps), view(x), view(weight), view(bias), view(state), view(reset), view(mask),
        view(source), view(gy), view(glast), *map(view, outputs), view(part),
    )  # fmt: skip
    gx, gweight, gbias, gstate = (gate.or_empty(t) for t in outputs)
    return gx, gweight, gbias, gstate


implement("native", _refuse, _forward, _backward)
