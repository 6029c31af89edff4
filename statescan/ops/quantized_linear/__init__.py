"""A linear map whose weight is stored in 8 or 4 bits, in groups along the input, each with a scale.

    y = W x + b,   W[o, g G + i] = scale[o, g] q[o, g, i]

with G = ``group_size``; the last group is filled up with zeros. In 8 bits q lies in -127..127, one byte each. In 4 bits q lies in -8..7,
and byte i of a group holds q + 8 of its numbers i (low half) and i + G/2 (high half).

An output has ``B = groups * G`` bytes (4 bits: half as many). They lie as they are read: those of 16 outputs side by side, four of each,
then the next four. So 16 neighbours in memory are 16 sums of a vector, and nothing is added up across one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.ops.checks import check_shape
from statescan.ops.dispatch import Op
from statescan.ops.quantized_linear.layout import SIDE

GROUP_SIZES = (64, 128, 256)

op = Op("quantized_linear", tolerance={torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 2e-2}, torch_products=True)


def quantized_linear(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, *, out_features: int | None = None, group_size: int = 64
) -> Tensor:
    """Multiply; the formula stands above. Gradients flow to x and bias.

    Args:
        x: input, (..., I).
        weight: int8, or uint8 for 4 bits: (tiles, B / 4, 16, 4), with tiles = ceil(O / 16).
        scale: bfloat16, (tiles, groups, 16), with groups = ceil(I / G).
        bias: (O,).
        out_features: O; all that the tiles hold unless it is given.
        group_size: G: 64, 128 or 256.

    Returns:
        y (..., O), of x's dtype.
    """
    if group_size not in GROUP_SIZES:
        raise ValueError(f"group_size must be one of {', '.join(map(str, GROUP_SIZES))}; got {group_size}")
    if weight.dtype not in (torch.int8, torch.uint8) or scale.dtype != torch.bfloat16:
        raise ValueError(f"weight must be int8, or uint8 for 4 bits, and scale bfloat16; got {weight.dtype} and {scale.dtype}")
    if out_features is None:
        out_features = SIDE * weight.shape[0]
    tiles, groups = -(-out_features // SIDE), -(-x.shape[-1] // group_size)
    check_shape("weight", weight, (tiles, groups * group_size // (4 if weight.dtype == torch.int8 else 8), SIDE, 4))
    check_shape("scale", scale, (tiles, groups, SIDE))
    if bias is not None:
        check_shape("bias", bias, (out_features,))
    return op(x=x, weight=weight, scale=scale, bias=bias, out_features=out_features, group_size=group_size)


from statescan.ops.quantized_linear import native, portable, reference  # noqa: E402, F401 - they register themselves
