"""Shapes and values that tests and benchmarks share."""

from __future__ import annotations

from typing import Any

import torch

from statescan.ops.case import Case, Draw

ALL = ("state", "reset", "reset_to", "mask")

CASES = [
    Case("plain", {"B": 2, "L": 7, "M": 6}),
    Case("one_position", {"B": 1, "L": 1, "M": 6}, ("state",)),
    Case("one_position_everything", {"B": 3, "L": 1, "M": 6}, ALL),
    Case("even_length", {"B": 1, "L": 64, "M": 20}, ("state", "reset")),
    Case("constant_decay", {"B": 2, "L": 37, "M": 5}, ("constant", "state")),
    Case("shared_decay", {"B": 3, "L": 37, "M": 5}, ("shared", *ALL)),
    Case("mask", {"B": 3, "L": 18, "M": 5}, ("state", "mask")),
    Case("everything", {"B": 3, "L": 67, "M": 6}, ALL),
    Case("long", {"B": 1, "L": 601, "M": 3}, ALL),
    Case("complex", {"B": 2, "L": 67, "M": 6}, ("complex", *ALL)),
    Case("complex_constant_decay", {"B": 2, "L": 35, "M": 4}, ("complex", "constant", "state")),
    Case("complex_with_real_decay", {"B": 2, "L": 21, "M": 4}, ("complex", "real_decay", *ALL)),
]

BENCH = [
    *(Case(f"real_{length}", {"B": 1, "L": length, "M": 2048}, ()) for length in (64, 512, 2048)),
    *(Case(f"complex_{length}", {"B": 1, "L": length, "M": 1024}, ("complex", "constant")) for length in (512, 2048)),
    *(Case(f"long_{length}", {"B": 1, "L": length, "M": 128}, ()) for length in (1 << 14, 1 << 17, 1 << 20)),
]

_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


def make(case: Case, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", seed: int = 0) -> dict[str, Any]:
    """Arguments of the public function. The option "complex" turns a real dtype into the complex one of its precision."""
    draw = Draw(case, dtype, device, seed)
    batch, length, width = (case.sizes[letter] for letter in "BLM")
    is_complex = "complex" in draw

    def number(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return torch.complex(tensor, other) if is_complex else tensor

    if "constant" in draw or "shared" in draw:
        shape = (1, 1 if "constant" in draw else length, width)
        a = draw.parameter(*shape).sigmoid().to(draw.dtype)
        turn = draw.parameter(*shape).to(draw.dtype)
    else:
        a, turn = draw.uniform(batch, length, width, low=0.2), draw.normal(batch, length, width)
    arguments: dict[str, Any] = {
        "a": torch.polar(a, turn) if is_complex and "real_decay" not in draw else a,
        "b": number(draw.normal(batch, length, width), draw.normal(batch, length, width)),
    }
    if "state" in draw:
        arguments["state"] = number(draw.parameter(batch, width), draw.parameter(batch, width))
    if "reset_to" in draw:
        arguments["reset_to"] = number(draw.parameter(width), draw.parameter(width))
    return arguments | {"timeline": draw.timeline, "return_state": True}


def supports(case: Case, dtype: torch.dtype) -> bool:
    """There is no complex bfloat16."""
    return "complex" not in case.options or dtype in _COMPLEX
