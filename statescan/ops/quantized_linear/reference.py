"""The whole weight in x's precision (float32 at least), and one matrix product."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.ops.checks import state_dtype
from statescan.ops.quantized_linear import op


def dequantize(weight: Tensor, scale: Tensor, in_features: int, dtype: torch.dtype) -> Tensor:
    """(O, I): the numbers that the bytes stand for."""
    groups = weight.unflatten(1, (scale.shape[1], -1))
    if weight.dtype == torch.uint8:
        groups = torch.cat([groups & 15, groups >> 4], dim=-1).to(torch.int8) - 8
    return (groups.to(dtype) * scale.to(dtype).unsqueeze(-1)).flatten(1)[:, :in_features]


@op.implementation("reference")
def reference(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, group_size: int) -> Tensor:
    """y (..., O)."""
    dtype = state_dtype(x)
    bias = None if bias is None else bias.to(dtype)
    return F.linear(x.to(dtype), dequantize(weight, scale, x.shape[-1], dtype), bias).to(x.dtype)
