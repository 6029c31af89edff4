"""Up to 16 rows in C++, in one pass over the bytes of the weight; more rows in the tiles of ``portable``, whose products are torch's.

The kernel rounds activations to 16 bits, one step a row and group of inputs: by 1.5e-5 of the group's largest number at most. Many rows are
rounded likewise, so that a prompt and single steps agree. Gradients do not know of that rounding, so where a backward may follow there is
none.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.ops import native_gate as gate
from statescan.ops import pages
from statescan.ops.native_gate import view
from statescan.ops.quantized_linear import op
from statescan.ops.quantized_linear.portable import product, product_t

FEW = 16


def _refuse(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, out_features: int, group_size: int) -> str | None:
    return gate.refuse((torch.float32, torch.bfloat16), x=x, scale=scale, bias=bias) or gate.refuse(
        (torch.int8, torch.uint8), weight=weight
    )


def _forward(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, out_features: int, group_size: int, exact: bool) -> Tensor:
    assert gate.module is not None
    rows = x.float().reshape(-1, x.shape[-1])
    if exact or rows.shape[0] > FEW:
        y = product(rows if exact else _rounded(rows, group_size), weight, scale, out_features, _values)
        if bias is not None:
            y += bias
    else:
        rows, weight, scale = rows.contiguous(), weight.contiguous(), scale.contiguous()
        y = pages.empty(rows.shape[0], out_features)
        gate.module.product(
            gate.threads(y.numel() * rows.shape[1]), rows.shape[0], out_features, rows.shape[1], group_size, view(weight), view(scale),
            view(bias), view(rows), view(y),
        )  # fmt: skip
    return y.to(x.dtype).reshape(*x.shape[:-1], out_features)


def _values(weight: Tensor, scale: Tensor, out_features: int, in_features: int, dtype: torch.dtype) -> Tensor:
    """As ``dequantize``, in float32."""
    assert gate.module is not None
    weight, scale = weight.contiguous(), scale.contiguous()
    y = torch.empty(out_features, in_features)
    group_size = weight[0].numel() // scale[0].numel() * (1 if weight.dtype == torch.int8 else 2)
    gate.module.dequantize(gate.threads(y.numel()), out_features, in_features, group_size, view(weight), view(scale), view(y))
    return y


def _rounded(rows: Tensor, group_size: int) -> Tensor:
    """What the kernel makes of activations (R, I): multiples of 1/32639 (two signed bytes) of the largest number of each row's group."""
    length = rows.shape[1]
    parts = F.pad(rows, (0, -length % group_size)).unflatten(1, (-1, group_size))
    largest = parts.abs().amax(-1, keepdim=True)
    inverse = torch.where(largest > 1e-30, 32639 / largest, 0)
    return (parts * inverse).round_().mul_(largest / 32639).flatten(1)[:, :length]


def _backward(gy: Tensor, weight: Tensor, scale: Tensor, in_features: int) -> Tensor:
    """Gradient of x."""
    gx = product_t(gy.float().reshape(-1, gy.shape[-1]), weight, scale, in_features, _values)
    return gx.to(gy.dtype).reshape(*gy.shape[:-1], in_features)


def _fake(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, out_features: int, *_: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


def _fake_backward(gy: Tensor, weight: Tensor, scale: Tensor, in_features: int) -> Tensor:
    return gy.new_empty(*gy.shape[:-1], in_features)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, scale = inputs[:3]
    ctx.in_features = x.shape[-1]
    ctx.save_for_backward(weight, scale)


def _gradients(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
    weight, scale = ctx.saved_tensors
    gx = _linear_backward(gy, weight, scale, ctx.in_features) if ctx.needs_input_grad[0] else None
    gbias = gy.float().reshape(-1, gy.shape[-1]).sum(0) if ctx.needs_input_grad[3] else None
    return gx, None, None, gbias, None, None, None


_linear, _linear_backward = gate.register(
    "quantized_linear",
    "(Tensor x, Tensor weight, Tensor scale, Tensor? bias, int out_features, int group_size, bool exact) -> Tensor",
    _forward,  # type: ignore[arg-type]
    _fake,  # type: ignore[arg-type]
    "(Tensor gy, Tensor weight, Tensor scale, int in_features) -> Tensor",
    _backward,  # type: ignore[arg-type]
    _fake_backward,  # type: ignore[arg-type]
    _setup,
    _gradients,
)


@op.implementation("native", _refuse)
def native(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, out_features: int, group_size: int) -> Tensor:
    """y (..., O)."""
    bias = gate.floats(bias)
    run = _forward if gate.direct(x, weight, scale, bias) else _linear
    return run(x, weight, scale, bias, out_features, group_size, gate.needs_gradient(x, bias))
