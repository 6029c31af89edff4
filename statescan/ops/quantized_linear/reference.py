"""The whole weight in x's precision (float32 at least), and one matrix product."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.ops.checks import state_dtype
from statescan.ops.quantized_linear import op
from statescan.ops.quantized_linear.layout import untile


def dequantize(weight: Tensor, scale: Tensor, out_features: int, in_features: int, dtype: torch.dtype) -> Tensor:
    """(O, I): the numbers that the bytes stand for."""
    rows, scale = untile(weight, scale)
    groups = rows.unflatten(1, (scale.shape[1], -1))
    if weight.dtype == torch.uint8:
        groups = torch.cat([groups & 15, groups >> 4], dim=-1).to(torch.int8) - 8
    return (groups.to(dtype) * scale.to(dtype).unsqueeze(-1)).flatten(1)[:out_features, :in_features]


@op.implementation("reference")
def reference(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, out_features: int, group_size: int) -> Tensor:
    """y (..., O)."""
    dtype = state_dtype(x)
    bias = None if bias is None else bias.to(dtype)
    return F.linear(x.to(dtype), dequantize(weight, scale, out_features, x.shape[-1], dtype), bias).to(x.dtype)
