"""Shapes and values that tests and benchmarks share."""

from __future__ import annotations

from typing import Any

import torch

from statescan.ops.case import Case, Draw

ALL = ("bias", "silu", "state", "reset", "mask")

CASES = [
    Case("plain", {"B": 2, "L": 7, "E": 6, "K": 4}),
    Case("one_position", {"B": 1, "L": 1, "E": 6, "K": 4}, ("bias", "silu", "state")),
    Case("one_position_everything", {"B": 3, "L": 1, "E": 6, "K": 4}, ALL),
    Case("as_in_mamba", {"B": 1, "L": 64, "E": 37, "K": 4}, ("bias", "silu")),
    Case("one_tap", {"B": 2, "L": 9, "E": 5, "K": 1}, ALL),
    Case("two_taps", {"B": 2, "L": 10, "E": 5, "K": 2}, ("state", "bias")),
    Case("shorter_than_the_taps", {"B": 3, "L": 3, "E": 5, "K": 7}, ALL),
    Case("reset", {"B": 3, "L": 21, "E": 5, "K": 4}, ("bias", "silu", "state", "reset")),
    Case("mask", {"B": 3, "L": 18, "E": 5, "K": 3}, ("bias", "silu", "state", "mask")),
    Case("everything", {"B": 3, "L": 67, "E": 19, "K": 4}, ALL),
]

BENCH = [
    *(Case(f"mamba_130m_{length}", {"B": 1, "L": length, "E": 1536, "K": 4}, ("bias", "silu")) for length in (64, 512, 2048)),
    Case("mamba2_130m_512", {"B": 1, "L": 512, "E": 1792, "K": 4}, ("bias", "silu")),
    *(Case(f"long_{length}", {"B": 1, "L": length, "E": 128, "K": 4}, ("bias", "silu")) for length in (1 << 14, 1 << 17, 1 << 20)),
]


def make(case: Case, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", seed: int = 0) -> dict[str, Any]:
    """Arguments of the public function."""
    draw = Draw(case, dtype, device, seed)
    batch, length, width, taps = (case.sizes[letter] for letter in "BLEK")
    arguments: dict[str, Any] = {"x": draw.normal(batch, length, width), "weight": draw.parameter(width, taps, scale=taps**-0.5)}
    if "bias" in draw:
        arguments["bias"] = draw.parameter(width)
    if "state" in draw:
        arguments["state"] = draw.parameter(batch, taps - 1, width).to(dtype)
    return arguments | {"activation": "silu" if "silu" in draw else None, "timeline": draw.timeline, "return_state": True}
