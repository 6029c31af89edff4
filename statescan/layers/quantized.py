"""A Linear whose weight is stored in 8 or 4 bits, and how a weight becomes so: rounding to nearest, one scale a group of inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from statescan.ops import pages, quantized_linear
from statescan.ops.checks import check_positive
from statescan.ops.quantized_linear import GROUP_SIZES
from statescan.ops.quantized_linear.layout import SIDE, tile
from statescan.ops.quantized_linear.reference import dequantize

Bits = Literal[4, 8]

_TILE = 1 << 20
"""Weights encoded at a time."""
_RANGES = {8: (-127, 127, (1.0,)), 4: (-8, 7, tuple(s * f for f in (8 / 7, 1.07, 1.0, 0.93, 0.86, 0.8, 0.73) for s in (1.0, -1.0)))}
"""Bits -> smallest and largest number, and the scales that are tried, relative to the one that makes the largest weight the smallest
number. In 4 bits the numbers reach one further below zero than above it, so a scale's sign matters."""


class QuantLinear(nn.Linear):
    """y = W x + b with W in groups of 8- or 4-bit numbers: :func:`statescan.ops.quantized_linear` says how they are laid out.

    It takes the place of an ``nn.Linear`` (adapters find it as one), but its ``weight`` is a buffer of bytes. Gradients flow to the input
    and the bias. ``.to(dtype)`` changes neither bytes nor scales, only the bias.
    """

    law_tolerance: ClassVar[float] = 5e-4
    """A forward without gradient rounds activations to 15 bits (1.5e-5 of the largest of a group); the layers behind amplify that."""
    weight: Tensor  # type: ignore[assignment]
    """int8, or uint8 for 4 bits: (tiles of 16 outputs, bytes of an output / 4, 16, 4)"""
    scale: Tensor
    """bfloat16 (tiles, groups, 16)"""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, bits: Bits = 8, group_size: int = 64) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would make a float weight
        check_positive(in_features=in_features, out_features=out_features)
        if bits not in _RANGES:
            raise ValueError(f"bits must be 8 or 4; got {bits}")
        if group_size not in GROUP_SIZES:
            raise ValueError(f"group_size must be one of {', '.join(map(str, GROUP_SIZES))}; got {group_size}")
        self.in_features, self.out_features, self.bits, self.group_size = in_features, out_features, bits, group_size
        tiles, groups = math.ceil(out_features / SIDE), math.ceil(in_features / group_size)
        shape = (tiles, groups * group_size * bits // 32, SIDE, 4)
        self.register_buffer("weight", torch.zeros(shape, dtype=torch.int8 if bits == 8 else torch.uint8))
        self.register_buffer("scale", torch.zeros(tiles, groups, SIDE, dtype=torch.bfloat16))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None  # type: ignore[assignment]

    @classmethod
    def from_linear(cls, linear: nn.Linear, bits: Bits = 8, group_size: int = 64) -> QuantLinear:
        """The quantised copy of a Linear; it takes over the bias itself."""
        with torch.device("meta"):
            new = cls(linear.in_features, linear.out_features, linear.bias is not None, bits=bits, group_size=group_size)
        encoded = encode(linear.weight.detach(), bits, group_size)
        new.weight, new.scale = (pages.resident(tensor) if tensor.is_cpu else tensor for tensor in encoded)
        new.bias = linear.bias
        return new.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        return quantized_linear(input, self.weight, self.scale, self.bias, out_features=self.out_features, group_size=self.group_size)

    def dequantize(self) -> Tensor:
        """The weight that the bytes stand for, float32 (out, in)."""
        return dequantize(self.weight, self.scale, self.out_features, self.in_features, torch.float32)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantLinear:
        def keep_scale(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            return tensor.to(new.device) if tensor is scale and new.dtype != tensor.dtype else new

        scale = self.scale
        super()._apply(keep_scale, recurse)  # type: ignore[no-untyped-call]
        return self

    def reset_parameters(self) -> None:
        """Numbers that stand for zero: there is nothing to draw."""
        for tensor in (self.weight, self.scale):
            tensor.zero_()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.bits}, group_size={self.group_size}"


def encode(weight: Tensor, bits: Bits, group_size: int) -> tuple[Tensor, Tensor]:
    """A float weight (O, I) to bytes and scales. In 4 bits each group takes the scale of least squared error among those tried."""
    step = max(1, _TILE // weight.shape[1])
    parts = [_encode(rows, bits, group_size) for rows in weight.split(step)]
    return tile(torch.cat([q for q, _ in parts]), torch.cat([s for _, s in parts]))


def _encode(weight: Tensor, bits: Bits, group_size: int) -> tuple[Tensor, Tensor]:
    low, high, factors = _RANGES[bits]
    padding = -weight.shape[1] % group_size
    w = nn.functional.pad(weight.float(), (0, padding)).unflatten(1, (-1, group_size))
    largest = w.abs().amax(-1) / -low
    best_error = torch.full_like(largest, math.inf)
    best_q, best_scale = torch.zeros_like(w), torch.zeros_like(largest)
    for factor in factors:
        scale = (largest * factor).bfloat16().float()
        q = (w / torch.where(scale == 0, 1.0, scale).unsqueeze(-1)).round_().clamp_(low, high)
        # The scale of least squared error for these numbers.
        scale = ((w * q).sum(-1) / q.square().sum(-1).clamp(min=1.0)).bfloat16().float()
        error = (w - q * scale.unsqueeze(-1)).square_().sum(-1)
        better = error < best_error
        best_error, best_scale = torch.where(better, error, best_error), torch.where(better, scale, best_scale)
        best_q = torch.where(better.unsqueeze(-1), q, best_q)
    if bits == 8:
        packed = best_q.to(torch.int8)
    else:
        first, second = (best_q + 8).to(torch.uint8).chunk(2, dim=-1)
        packed = first | (second << 4)
    return packed.flatten(1), best_scale.bfloat16()
