"""Shapes and values that tests and benchmarks share."""

from __future__ import annotations

from typing import Any

import torch

from statescan.ops.case import Case, Draw

ALL = ("state", "reset", "mask")

CASES = [
    Case("plain", {"B": 2, "L": 7, "H": 3, "P": 4}),
    Case("one_position", {"B": 1, "L": 1, "H": 2, "P": 3}, ("state",)),
    Case("one_position_everything", {"B": 3, "L": 1, "H": 2, "P": 3}, ALL),
    Case("long", {"B": 1, "L": 139, "H": 1, "P": 6}),
    Case("wide_gates", {"B": 2, "L": 67, "H": 2, "P": 4}, ("wide", "state")),
    Case("reset", {"B": 3, "L": 33, "H": 2, "P": 3}, ("state", "reset")),
    Case("mask", {"B": 3, "L": 34, "H": 2, "P": 3}, ("state", "mask")),
    Case("everything", {"B": 3, "L": 133, "H": 2, "P": 5}, ALL),
]

BENCH = [Case(f"130m_{length}", {"B": 1, "L": length, "H": 4, "P": 192}) for length in (64, 512, 2048)]


def make(case: Case, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", seed: int = 0) -> dict[str, Any]:
    """Arguments of the public function: gates about 0 (wide: up to 15 either way); R neither vanishes nor explodes."""
    draw = Draw(case, dtype, device, seed)
    batch, length, heads, cells = (case.sizes[letter] for letter in "BLHP")
    gates = (
        draw.uniform(batch, length, 4, heads, cells, low=-15, high=15) if "wide" in draw else draw.normal(batch, length, 4, heads, cells)
    )
    arguments: dict[str, Any] = {"gates": gates, "R": draw.parameter(4, heads, cells, cells, scale=0.7 * cells**-0.5)}
    if "state" in draw:
        h, c, n, m = (draw.parameter(batch, heads, cells) for _ in range(4))
        arguments["state"] = (h.tanh(), c, 1 + n.abs(), m)
    return arguments | {"timeline": draw.timeline, "return_state": True}
