"""The product in tiles of outputs, each dequantised when it is needed, in the backward pass again: no float copy of the weight lives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from statescan.ops.checks import state_dtype
from statescan.ops.products import linear
from statescan.ops.quantized_linear import op
from statescan.ops.quantized_linear.layout import SIDE
from statescan.ops.quantized_linear.reference import dequantize

TILE = 1 << 20
"""Weights a tile, 4 MiB as float32: fewer make the products of a prompt slower, more only take memory."""


Values = Callable[[Tensor, Tensor, int, int, torch.dtype], Tensor]
"""As ``dequantize``."""


def _tiles(
    values: Values, weight: Tensor, scale: Tensor, out_features: int, in_features: int, dtype: torch.dtype
) -> Iterator[tuple[slice, Tensor]]:
    """(outputs, their float weight)."""
    step = max(1, TILE // (SIDE * in_features))
    for first in range(0, weight.shape[0], step):
        part, outputs = slice(first, first + step), slice(SIDE * first, min(SIDE * (first + step), out_features))
        yield outputs, values(weight[part], scale[part], outputs.stop - outputs.start, in_features, dtype)


def product(x: Tensor, weight: Tensor, scale: Tensor, out_features: int, values: Values = dequantize) -> Tensor:
    """(R, I) -> (R, O), in x's dtype."""
    y = x.new_empty(x.shape[0], out_features)
    for part, tile in _tiles(values, weight, scale, out_features, x.shape[1], x.dtype):
        y[:, part] = linear(x, tile)
    return y


def product_t(y: Tensor, weight: Tensor, scale: Tensor, in_features: int, values: Values = dequantize) -> Tensor:
    """(R, O) -> (R, I): the transposed map."""
    x = y.new_zeros(y.shape[0], in_features)
    for part, tile in _tiles(values, weight, scale, y.shape[1], in_features, y.dtype):
        x = x + y[:, part] @ tile
    return x


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, scale: Tensor, out_features: int) -> Tensor:
        return product(x, weight, scale, out_features)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
        x, weight, scale, _ = inputs
        ctx.in_features = x.shape[1]
        ctx.save_for_backward(weight, scale)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> Any:  # type: ignore[override]
        return _ProductT.apply(gy, *ctx.saved_tensors, ctx.in_features), None, None, None


class _ProductT(torch.autograd.Function):
    @staticmethod
    def forward(y: Tensor, weight: Tensor, scale: Tensor, in_features: int) -> Tensor:
        return product_t(y, weight, scale, in_features)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
        ctx.out_features = inputs[0].shape[1]
        ctx.save_for_backward(*inputs[1:3])

    @staticmethod
    def backward(ctx: Any, gx: Tensor) -> Any:  # type: ignore[override]
        return _Product.apply(gx, *ctx.saved_tensors, ctx.out_features), None, None, None


@op.implementation("portable")
def portable(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, out_features: int, group_size: int) -> Tensor:
    """y (..., O)."""
    rows = x.to(state_dtype(x)).flatten(0, -2) if x.ndim > 1 else x.to(state_dtype(x)).unsqueeze(0)
    y = _Product.apply(rows, weight, scale, out_features).reshape(*x.shape[:-1], out_features)  # type: ignore[no-untyped-call]
    return (y if bias is None else y + bias.to(y.dtype)).to(x.dtype)
