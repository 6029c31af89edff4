"""Shapes and values that tests and benchmarks share."""

from __future__ import annotations

from typing import Any

import torch

from statescan.ops.case import Case, Draw

CASES = [
    Case("plain", {"B": 2, "L": 7, "D": 6}),
    Case("one_position", {"B": 1, "L": 1, "D": 6}, ("state",)),
    Case("everything", {"B": 3, "L": 67, "D": 5}, ("state", "reset", "mask")),
]

BENCH = [Case("long", {"B": 1, "L": 1 << 14, "D": 128})]


def make(case: Case, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", seed: int = 0) -> dict[str, Any]:
    """Arguments of the public function."""
    draw = Draw(case, dtype, device, seed)
    batch, length, width = (case.sizes[letter] for letter in "BLD")
    arguments: dict[str, Any] = {"x": draw.normal(batch, length, width), "decay": draw.parameter(width).sigmoid()}
    if "state" in draw:
        arguments["state"] = draw.parameter(batch, width)
    return arguments | {"timeline": draw.timeline, "return_state": True}
