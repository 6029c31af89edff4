"""The product in tiles of outputs, each dequantised when it is needed, in the backward pass again: no float copy of the weight lives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from statescan.ops.checks import state_dtype
from statescan.ops.products import linear
from statescan.ops.quantized_linear import op
from statescan.ops.quantized_linear.reference import dequantize

TILE = 1 << 18
"""Weights a tile: their float32 copy stays in a core's cache."""


def _tiles(weight: Tensor, scale: Tensor, in_features: int, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """(outputs, their float weight)."""
    step = max(1, TILE // in_features)
    for first in range(0, weight.shape[0], step):
        part = slice(first, min(first + step, weight.shape[0]))
        yield part, dequantize(weight[part], scale[part], in_features, dtype)


def product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """(R, I) -> (R, O), in x's dtype."""
    y = x.new_empty(x.shape[0], weight.shape[0])
    for part, values in _tiles(weight, scale, x.shape[1], x.dtype):
        y[:, part] = linear(x, values)
    return y


def product_t(y: Tensor, weight: Tensor, scale: Tensor, in_features: int) -> Tensor:
    """(R, O) -> (R, I): the transposed map."""
    x = y.new_zeros(y.shape[0], in_features)
    for part, values in _tiles(weight, scale, in_features, y.dtype):
        x = x + y[:, part] @ values
    return x


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        return product(x, weight, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        x, weight, scale = inputs
        ctx.in_features = x.shape[1]
        ctx.save_for_backward(weight, scale)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> Any:  # type: ignore[override]
        return _ProductT.apply(gy, *ctx.saved_tensors, ctx.in_features), None, None


class _ProductT(torch.autograd.Function):
    @staticmethod
    def forward(y: Tensor, weight: Tensor, scale: Tensor, in_features: int) -> Tensor:
        return product_t(y, weight, scale, in_features)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:3])

    @staticmethod
    def backward(ctx: Any, gx: Tensor) -> Any:  # type: ignore[override]
        return _Product.apply(gx, *ctx.saved_tensors), None, None, None


@op.implementation("portable")
def portable(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, group_size: int) -> Tensor:
    """y (..., O)."""
    rows = x.to(state_dtype(x)).flatten(0, -2) if x.ndim > 1 else x.to(state_dtype(x)).unsqueeze(0)
    y = _Product.apply(rows, weight, scale).reshape(*x.shape[:-1], weight.shape[0])  # type: ignore[no-untyped-call]
    return (y if bias is None else y + bias.to(y.dtype)).to(x.dtype)
