"""Shapes and values that tests and benchmarks share."""

from __future__ import annotations

from typing import Any

import torch

from statescan.ops.case import Case, Draw

ALL = ("weights", "gate", "state", "reset", "mask")

CASES = [
    Case("plain", {"B": 2, "L": 7, "H": 4, "P": 3, "N": 6, "G": 4, "R": 1, "T": 2}),
    Case("one_position", {"B": 1, "L": 1, "H": 4, "P": 3, "N": 6, "G": 2, "R": 1, "T": 3}, ("state", "gate")),
    Case("one_position_everything", {"B": 3, "L": 1, "H": 2, "P": 3, "N": 4, "G": 1, "R": 3, "T": 1}, ALL),
    Case("one_write", {"B": 2, "L": 70, "H": 3, "P": 40, "N": 20, "G": 1, "R": 1, "T": 10}, ("state", "gate")),
    Case("two_writes", {"B": 1, "L": 65, "H": 2, "P": 20, "N": 8, "G": 2, "R": 2, "T": 0}, ("weights", "state")),
    Case("four_writes", {"B": 1, "L": 67, "H": 2, "P": 17, "N": 34, "G": 1, "R": 4, "T": 9}, ("weights", "gate", "state", "halves")),
    Case("six_writes", {"B": 1, "L": 33, "H": 2, "P": 9, "N": 10, "G": 2, "R": 6, "T": 5}, ("gate", "state", "halves")),
    Case("strong_decay", {"B": 1, "L": 130, "H": 2, "P": 4, "N": 6, "G": 2, "R": 2, "T": 2}, ("strong", "state", "gate")),
    Case("everything", {"B": 3, "L": 83, "H": 4, "P": 6, "N": 10, "G": 2, "R": 1, "T": 4}, ("gate", "state", "reset", "mask")),
    Case("everything_several", {"B": 3, "L": 71, "H": 4, "P": 11, "N": 6, "G": 2, "R": 3, "T": 2}, (*ALL, "halves")),
]

BENCH = [
    Case(f"{name}_130m_{length}", {"B": 1, "L": length, "H": 24, "P": 64, "N": 128, "G": 1, "R": rank, "T": 32}, options)
    for name, rank, options in (("siso", 1, ("gate",)), ("mimo", 4, ("gate", "weights")))
    for length in (64, 512, 2048)
]


def make(case: Case, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", seed: int = 0) -> dict[str, Any]:
    """Arguments of the public function."""
    draw = Draw(case, dtype, device, seed)
    batch, length, heads, width, keys, rank = (case.sizes[letter] for letter in "BLHPNR")
    groups, angles = min(case.sizes["G"], heads), min(case.sizes["T"], keys // 2)
    arguments: dict[str, Any] = {
        "q": draw.normal(batch, length, rank, groups, keys),
        "k": draw.normal(batch, length, rank, groups, keys),
        "v": draw.normal(batch, length, heads, width),
        "log_decay": -(20.0 if "strong" in draw else 0.5) * draw.uniform(batch, length, heads),
        "delta": draw.uniform(batch, length, heads),
        "mix": draw.uniform(batch, length, heads),
        "speed": draw.uniform(batch, length, angles, low=-3, high=3),
        "q_bias": draw.parameter(heads, rank, keys),
        "k_bias": draw.parameter(heads, rank, keys),
        "D": draw.parameter(heads),
    }
    weights = (heads, rank, width)
    if "gate" in draw:
        arguments["z"] = draw.normal(batch, length, heads, width)
    if "weights" in draw:
        arguments["v_weight"] = draw.parameter(*weights)
    if "weights" in draw and "gate" in draw:
        arguments |= {"z_weight": draw.parameter(*weights), "y_weight": draw.parameter(*weights)}
    if "state" in draw:
        shapes = ((batch, heads, angles), (batch, heads, width, keys), (batch, rank, heads, keys), (batch, heads, width))
        arguments["state"] = tuple(draw.parameter(*shape) for shape in shapes)
    if "halves" in draw:
        arguments["layout"] = "halves"
    return arguments | {"timeline": draw.timeline, "return_state": True}
