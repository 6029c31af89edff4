"""Shapes and values that tests and benchmarks share."""

from __future__ import annotations

from typing import Any

import torch

from statescan.ops.case import Case, Draw

ALL = ("state", "reset", "mask")

CASES = [
    Case("plain", {"B": 2, "L": 7, "H": 3, "P": 4, "N": 5}),
    Case("one_position", {"B": 1, "L": 1, "H": 2, "P": 3, "N": 5}, ("state",)),
    Case("one_position_everything", {"B": 3, "L": 1, "H": 2, "P": 3, "N": 5}, ALL),
    Case("long", {"B": 1, "L": 139, "H": 2, "P": 6, "N": 4}),
    Case("closed_gates", {"B": 2, "L": 67, "H": 2, "P": 4, "N": 3}, ("closed", "state")),
    Case("wide_gates", {"B": 1, "L": 130, "H": 2, "P": 4, "N": 3}, ("wide", "state")),
    Case("reset", {"B": 3, "L": 65, "H": 2, "P": 3, "N": 4}, ("state", "reset")),
    Case("mask", {"B": 3, "L": 64, "H": 2, "P": 3, "N": 4}, ("state", "mask")),
    Case("everything", {"B": 3, "L": 133, "H": 2, "P": 5, "N": 6}, (*ALL, "scale")),
]

BENCH = [Case(f"130m_{length}", {"B": 1, "L": length, "H": 4, "P": 192, "N": 96}) for length in (64, 512, 2048)]


def make(case: Case, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", seed: int = 0) -> dict[str, Any]:
    """Arguments of the public function: input gates about 0 (closed: -10; wide: up to 15 either way), forget gates about 3."""
    draw = Draw(case, dtype, device, seed)
    batch, length, heads, width, keys = (case.sizes[letter] for letter in "BLHPN")
    offset, spread = (-10.0, 1.0) if "closed" in draw else (0.0, 15.0) if "wide" in draw else (0.0, 2.0)
    arguments: dict[str, Any] = {
        "q": draw.normal(batch, length, heads, keys),
        "k": draw.normal(batch, length, heads, keys),
        "v": draw.normal(batch, length, heads, width),
        "i_raw": draw.uniform(batch, length, heads, low=offset - spread, high=offset + spread),
        "f_raw": draw.uniform(batch, length, heads, low=3 - 2 * spread, high=3 + spread),
    }
    if "state" in draw:
        arguments["state"] = (draw.parameter(batch, heads, keys, width), draw.parameter(batch, heads, keys), draw.parameter(batch, heads))
    if "scale" in draw:
        arguments["scale"] = 0.7
    return arguments | {"timeline": draw.timeline, "return_state": True}
