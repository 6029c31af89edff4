"""Shapes and values that tests and benchmarks share."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


class Shape(NamedTuple):
    """Rows, width D, groups; ``gate`` is "first" or "last"."""

    rows: tuple[int, ...]
    width: int
    groups: int = 1
    gate: str | None = None
    weight: bool = True


SHAPES: dict[str, Shape] = {
    "one number": Shape((1,), 1),
    "a vector": Shape((), 48),
    "no rows": Shape((0, 3), 8),
    "odd": Shape((3, 5), 37),
    "odd, without weight": Shape((3, 5), 37, weight=False),
    "as in a block": Shape((1, 17), 768),
    "heads": Shape((2, 3, 7), 64),
    "groups": Shape((2, 9), 33, 3),
    "gate first": Shape((2, 70), 24, gate="first"),
    "gate first, odd groups": Shape((4, 5), 35, 5, "first"),
    "gate first, without weight": Shape((9,), 40, 2, "first", weight=False),
    "gate last": Shape((2, 70), 24, gate="last"),
    "gate last, odd groups": Shape((4, 5), 35, 5, "last"),
    "gate last, without weight": Shape((9,), 40, 2, "last", weight=False),
    "several blocks": Shape((3, 230), 300, 2, "first"),
}

BENCH: dict[str, Shape] = {
    "mamba_130m_512": Shape((1, 512), 768),
    "mamba2_130m_512": Shape((1, 512), 1536, 1, "first"),
    "mamba2_130m_1": Shape((1, 1), 1536, 1, "first"),
}


def make(shape: Shape, dtype: torch.dtype = torch.float32, weight_dtype: torch.dtype | None = None, seed: int = 0) -> dict[str, Any]:
    """Arguments of the public function."""
    g = torch.Generator().manual_seed(seed)
    x, z = (torch.randn(*shape.rows, shape.width, generator=g, dtype=torch.float64).to(dtype) for _ in range(2))
    weight = torch.randn(shape.width, generator=g, dtype=torch.float64).to(dtype if weight_dtype is None else weight_dtype)
    return {
        "x": x,
        "weight": weight if shape.weight else None,
        "z": None if shape.gate is None else z,
        "groups": shape.groups,
        "norm_before_gate": shape.gate == "last",
    }
