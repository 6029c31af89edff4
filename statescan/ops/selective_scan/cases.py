"""Shapes and values that tests and benchmarks share."""

from __future__ import annotations

from typing import Any

import torch

from statescan.ops.case import Case, Draw

ALL = ("D", "z", "bias", "softplus", "state", "reset", "reset_to", "mask", "interval")

CASES = [
    Case("plain", {"B": 2, "L": 7, "E": 6, "N": 4, "G": 1}),
    Case("one_position", {"B": 1, "L": 1, "E": 6, "N": 4, "G": 1}, ("D", "z", "bias", "softplus", "state")),
    Case("one_position_everything", {"B": 3, "L": 1, "E": 6, "N": 4, "G": 2}, ALL),
    Case("as_in_mamba", {"B": 1, "L": 64, "E": 20, "N": 16, "G": 1}, ("D", "z", "bias", "softplus")),
    Case("groups", {"B": 2, "L": 33, "E": 12, "N": 3, "G": 3}, ("D", "state")),
    Case("group_a_channel", {"B": 2, "L": 9, "E": 5, "N": 2, "G": 5}, ("z", "state")),
    Case("reset_to_zero", {"B": 3, "L": 21, "E": 5, "N": 4, "G": 1}, ("state", "reset")),
    Case("mask", {"B": 3, "L": 18, "E": 5, "N": 4, "G": 1}, ("D", "z", "bias", "softplus", "state", "mask")),
    Case("constant_interval", {"B": 2, "L": 11, "E": 4, "N": 1, "G": 1}, ("softplus", "constant_interval")),
    Case("steps_as_product", {"B": 2, "L": 67, "E": 70, "N": 5, "G": 1, "R": 3}, (*ALL, "product")),
    Case("steps_as_product_short", {"B": 2, "L": 2, "E": 5, "N": 16, "G": 1, "R": 7}, ("bias", "softplus", "product")),
    Case("steps_as_product_of_nothing", {"B": 2, "L": 20, "E": 5, "N": 4, "G": 1, "R": 0}, ("bias", "softplus", "product")),
    Case("everything", {"B": 3, "L": 67, "E": 34, "N": 5, "G": 2}, ALL),
    Case("all_states", {"B": 3, "L": 13, "E": 6, "N": 4, "G": 2}, (*ALL, "states")),
]

BENCH = [
    *(Case(f"mamba_130m_{length}", {"B": 1, "L": length, "E": 1536, "N": 16, "G": 1}, CASES[3].options) for length in (64, 512, 2048)),
    Case("mamba_130m_batch", {"B": 8, "L": 256, "E": 1536, "N": 16, "G": 1}, CASES[3].options),
    *(Case(f"long_{length}", {"B": 1, "L": length, "E": 128, "N": 16, "G": 1}, CASES[3].options) for length in (1 << 14, 1 << 17, 1 << 20)),
]


def make(case: Case, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", seed: int = 0) -> dict[str, Any]:
    """Arguments of the public function."""
    draw = Draw(case, dtype, device, seed)
    batch, length, width, n, groups = (case.sizes[letter] for letter in "BLENG")
    maps = (batch, length, n) if groups == 1 else (batch, length, groups, n)
    arguments: dict[str, Any] = {
        "x": draw.normal(batch, length, width),
        "delta": draw.normal(batch, length, width) if "softplus" in draw else draw.uniform(batch, length, width, low=0.01),
        "A": draw.negative(width, n),
        "B": draw.normal(*maps),
        "C": draw.normal(*maps),
    }
    if "D" in draw:
        arguments["D"] = draw.parameter(width)
    if "z" in draw:
        arguments["z"] = draw.normal(batch, length, width)
    if "product" in draw:
        rank = case.sizes["R"]
        arguments |= {"delta": draw.normal(batch, length, rank), "delta_weight": draw.parameter(width, rank)}
    if "bias" in draw:
        arguments["delta_bias"] = draw.parameter(width)
    if "state" in draw:
        arguments["state"] = draw.parameter(batch, width, n)
    if "reset_to" in draw:
        arguments["reset_to"] = draw.parameter(width, n)
    return arguments | {
        "delta_softplus": "softplus" in draw,
        "timeline": draw.timeline,
        "return_state": True,
        "return_states": "states" in draw,
    }
