"""Shapes and values that tests and benchmarks share. W is the number of writes a position."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from statescan.ops.case import Case, Draw

ALL = ("vector", "state", "reset", "mask")

CASES = [
    Case("plain", {"B": 2, "L": 7, "H": 4, "P": 3, "N": 5, "G": 4, "W": 1}),
    Case("one_position", {"B": 1, "L": 1, "H": 4, "P": 3, "N": 5, "G": 2, "W": 1}, ("scalar", "state")),
    Case("one_position_everything", {"B": 3, "L": 1, "H": 2, "P": 3, "N": 5, "G": 2, "W": 2}, ALL),
    Case("constant", {"B": 2, "L": 70, "H": 3, "P": 8, "N": 4, "G": 3, "W": 1}, ("constant", "state")),
    Case("scalar", {"B": 1, "L": 64, "H": 3, "P": 8, "N": 16, "G": 1, "W": 1}, ("scalar",)),
    Case("scalar_everything", {"B": 3, "L": 83, "H": 4, "P": 5, "N": 3, "G": 2, "W": 1}, ("scalar", "state", "reset", "mask", "scale")),
    Case("vector", {"B": 1, "L": 65, "H": 2, "P": 6, "N": 7, "G": 2, "W": 1}, ("vector", "state")),
    Case("strong_decay", {"B": 1, "L": 130, "H": 2, "P": 4, "N": 5, "G": 2, "W": 1}, ("vector", "strong", "state")),
    Case("reset_without_decay", {"B": 3, "L": 33, "H": 2, "P": 5, "N": 4, "G": 2, "W": 1}, ("state", "reset", "mask")),
    Case("three_writes", {"B": 3, "L": 45, "H": 2, "P": 5, "N": 4, "G": 1, "W": 3}, ("scalar", "state", "reset", "mask")),
    Case("low_rank", {"B": 3, "L": 71, "H": 2, "P": 5, "N": 4, "G": 2, "W": 2}, ("vector", "read", "state", "reset", "mask")),
    Case("everything", {"B": 3, "L": 139, "H": 4, "P": 6, "N": 9, "G": 2, "W": 1}, (*ALL, "scale")),
]

BENCH = [
    Case(f"{kind}_130m_{length}", {"B": 1, "L": length, "H": 6, "P": 192, "N": 96, "G": 6, "W": 1}, (kind,))
    for kind in ("scalar", "vector")
    for length in (64, 512, 2048)
]


def make(case: Case, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", seed: int = 0) -> dict[str, Any]:
    """Arguments of the public function: keys of length one, writes of strength up to 2."""
    draw = Draw(case, dtype, device, seed)
    batch, length, heads, width, keys, writes = (case.sizes[letter] for letter in "BLHPNW")
    groups, several = min(case.sizes["G"], heads), (writes,) if writes > 1 else ()
    arguments: dict[str, Any] = {
        "q": draw.normal(batch, length, groups, keys),
        "k": F.normalize(draw.normal(batch, length, *several, groups, keys), dim=-1),
        "v": draw.normal(batch, length, *several, heads, width),
    }
    if "read" in draw:
        arguments["read"] = 0.5 * F.normalize(draw.normal(batch, length, *several, heads, keys), dim=-1)
    else:
        arguments["beta"] = 2 * draw.uniform(batch, length, *several, heads)
    strength = 8.0 if "strong" in draw else 0.5
    if "constant" in draw:
        arguments["log_decay"] = draw.negative(heads)
    if "scalar" in draw:
        arguments["log_decay"] = -strength * draw.uniform(batch, length, heads)
    if "vector" in draw:
        arguments["log_decay"] = -strength * draw.uniform(batch, length, heads, keys)
    if "state" in draw:
        arguments["state"] = draw.parameter(batch, heads, keys, width)
    if "scale" in draw:
        arguments["scale"] = 0.7
    return arguments | {"timeline": draw.timeline, "return_state": True}
