"""Shapes and values that tests and benchmarks share."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from statescan.ops.quantized_linear.layout import tile


class Shape(NamedTuple):
    """Rows R, inputs I, outputs O."""

    rows: tuple[int, ...]
    inputs: int
    outputs: int
    bits: int
    group_size: int = 64
    bias: bool = False


SHAPES: dict[str, Shape] = {
    "one row": Shape((1,), 64, 8, 8),
    "one row, 4 bits": Shape((1,), 64, 8, 4),
    "a vector": Shape((), 128, 5, 4, bias=True),
    "less than a group": Shape((2,), 37, 9, 8, bias=True),
    "less than a group, 4 bits": Shape((2,), 37, 9, 4, bias=True),
    "a last group of one": Shape((3, 1), 129, 67, 8, 128, True),
    "a last group of one, 4 bits": Shape((3, 1), 129, 67, 4, 128, True),
    "few rows": Shape((16,), 320, 131, 8, 64, True),
    "few rows, 4 bits": Shape((16,), 320, 131, 4, 64, True),
    "many rows": Shape((2, 9), 300, 70, 8, 256),
    "many rows, 4 bits": Shape((2, 9), 300, 70, 4, 256, True),
    "several tiles": Shape((17,), 3000, 400, 4, 64, True),
}

BENCH: dict[str, Shape] = {
    f"{name} int{bits}": Shape((1,), inputs, outputs, bits)
    for name, inputs, outputs in (("in_proj", 768, 3072), ("out_proj", 1536, 768), ("head", 768, 50280))
    for bits in (8, 4)
}


def make(shape: Shape, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Any]:
    """Arguments of the public function."""
    g = torch.Generator().manual_seed(seed)
    groups = -(-shape.inputs // shape.group_size)
    q = torch.randint(-8, 8, (shape.outputs, groups, shape.group_size), generator=g)
    if shape.bits == 8:
        q = torch.randint(-127, 128, q.shape, generator=g)
    q.view(shape.outputs, -1)[:, shape.inputs :] = 0
    if shape.bits == 8:
        weight = q.to(torch.int8).flatten(1)
    else:
        low, high = (q + 8).to(torch.uint8).chunk(2, dim=-1)
        weight = (low | (high << 4)).flatten(1)
    scale = (torch.randn(shape.outputs, groups, generator=g) / 2**shape.bits / shape.inputs**0.5).bfloat16()
    bias = torch.randn(shape.outputs, generator=g, dtype=torch.float64)
    weight, scale = tile(weight, scale)
    return {
        "x": torch.randn(*shape.rows, shape.inputs, generator=g, dtype=torch.float64).to(dtype),
        "weight": weight,
        "scale": scale,
        "bias": bias.to(dtype) if shape.bias else None,
        "out_features": shape.outputs,
        "group_size": shape.group_size,
    }
