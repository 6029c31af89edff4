"""The norm and its gate in C++: one pass forward; the backward pass keeps the inputs alone and finds the rows' scales anew."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from statescan.ops import native_gate as gate
from statescan.ops import pages
from statescan.ops.native_gate import view
from statescan.ops.rms_norm import op

BLOCK, BLOCKS = 8, 64
"""Rows a tile at least, and tiles at most: the weight's gradient is a sum over tiles, in order."""


def _refuse(x: Tensor, weight: Tensor | None, z: Tensor | None, groups: int, eps: float, norm_before_gate: bool) -> str | None:
    if x.shape[-1] == 0:
        return "the width is 0; the native kernel takes at least 1"
    return gate.refuse((torch.float32, torch.bfloat16), x=x, weight=weight, z=z)


def _rows(tensor: Tensor) -> Tensor:
    """Itself where it is contiguous, else (rows, D), a view wherever the rows lie at one distance."""
    tensor = gate.rows(tensor)
    return tensor if tensor.is_contiguous() else tensor.reshape(-1, tensor.shape[-1])


def _view(tensor: Tensor | None) -> tuple[int, ...]:
    """A tensor from :func:`_rows` as (rows, D)."""
    if tensor is None or not tensor.is_contiguous():
        return view(tensor)
    return (*view(tensor)[:2], tensor.shape[-1], 1)


def _sizes(x: Tensor, groups: int) -> tuple[int, int, int, int]:
    """Rows, width, groups, rows a tile."""
    width = x.shape[-1]
    rows = x.numel() // width
    return rows, width, groups, max(BLOCK, -(-rows // BLOCKS))


def _forward(x: Tensor, weight: Tensor | None, z: Tensor | None, groups: int, eps: float, norm_before_gate: bool) -> Tensor:
    assert gate.module is not None
    y = pages.empty(x.shape, dtype=x.dtype if weight is None else weight.dtype)
    x, weight, z = _rows(x), gate.rows_or_none(weight), None if z is None else _rows(z)
    gate.module.rms_norm(
        gate.threads(x.numel() * (4 if z is None else 16)), norm_before_gate, eps, _sizes(x, groups),
        _view(x), view(weight), _view(z), _view(y),
    )  # fmt: skip
    return y


def _backward(
    gy: Tensor, x: Tensor, weight: Tensor | None, z: Tensor | None, groups: int, eps: float, norm_before_gate: bool
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, weight and z; empty where there is none of them."""
    assert gate.module is not None
    rows, width, *_ = sizes = _sizes(x, groups)
    gx, gweight, gz = (gate.like(t) for t in (x, weight, z))
    part = None if weight is None else pages.empty(-(-rows // sizes[-1]), width)
    x, weight, z, gy = _rows(x), gate.rows_or_none(weight), None if z is None else _rows(z), _rows(gy)
    gate.module.rms_norm_backward(
        gate.threads(x.numel() * (8 if z is None else 32)), norm_before_gate, eps, sizes,
        _view(x), view(weight), _view(z), _view(gy), _view(gx), view(gweight), _view(gz), view(part),
    )  # fmt: skip
    return gate.or_empty(gx), gate.or_empty(gweight), gate.or_empty(gz)


def _fake(x: Tensor, weight: Tensor | None, *_: Any) -> Tensor:
    return x.new_empty(x.shape, dtype=x.dtype if weight is None else weight.dtype)


def _fake_backward(gy: Tensor, x: Tensor, weight: Tensor | None, z: Tensor | None, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return gate.fake_like(x, x), gate.fake_like(weight, x), gate.fake_like(z, x)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.groups, ctx.eps, ctx.norm_before_gate = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, z = ctx.saved_tensors
    gx, gweight, gz = _norm_backward(gy, x, weight, z, ctx.groups, ctx.eps, ctx.norm_before_gate)
    return gx, None if weight is None else gweight, None if z is None else gz, None, None, None


_INPUTS = "Tensor x, Tensor? weight, Tensor? z, int groups, float eps, bool norm_before_gate"
_norm, _norm_backward = gate.register(
    "rms_norm",
    f"({_INPUTS}) -> Tensor",
    _forward,  # type: ignore[arg-type]
    _fake,  # type: ignore[arg-type]
    f"(Tensor gy, {_INPUTS}) -> (Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
    _setup,
    _gradients,
)


@op.implementation("native", _refuse)
def native(x: Tensor, weight: Tensor | None, z: Tensor | None, groups: int, eps: float, norm_before_gate: bool) -> Tensor:
    """y of x's shape."""
    run = _forward if gate.direct(x, weight, z) else _norm
    return run(x, weight, z, groups, eps, norm_before_gate)
