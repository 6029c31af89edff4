"""Shapes and values that tests and benchmarks share."""

from __future__ import annotations

from typing import Any

import torch

from statescan.ops.case import Case, Draw

ALL = ("D", "bias", "softplus", "state", "reset", "reset_to", "mask", "interval")

CASES = [
    Case("plain", {"B": 2, "L": 7, "H": 4, "P": 3, "N": 5, "G": 1}),
    Case("one_position", {"B": 1, "L": 1, "H": 4, "P": 3, "N": 5, "G": 1}, ("D", "bias", "softplus", "state")),
    Case("one_position_everything", {"B": 3, "L": 1, "H": 4, "P": 3, "N": 5, "G": 2}, ALL),
    Case("as_in_mamba2", {"B": 1, "L": 64, "H": 3, "P": 16, "N": 32, "G": 1}, ("D", "bias", "softplus")),
    Case("groups", {"B": 2, "L": 33, "H": 6, "P": 4, "N": 3, "G": 3}, ("D_wide", "state")),
    Case("group_a_head", {"B": 2, "L": 9, "H": 3, "P": 1, "N": 2, "G": 3}, ("limit", "softplus", "state")),
    Case("reset_to_zero", {"B": 3, "L": 21, "H": 2, "P": 5, "N": 4, "G": 1}, ("state", "reset")),
    Case("mask", {"B": 3, "L": 18, "H": 2, "P": 5, "N": 4, "G": 1}, ("D", "bias", "softplus", "state", "mask")),
    Case("constant_interval", {"B": 2, "L": 11, "H": 4, "P": 2, "N": 1, "G": 1}, ("softplus", "constant_interval")),
    Case("small_chunks", {"B": 3, "L": 22, "H": 4, "P": 3, "N": 5, "G": 2}, (*ALL, "chunks_of_5")),
    Case("everything", {"B": 3, "L": 139, "H": 4, "P": 6, "N": 9, "G": 2}, (*ALL, "limit")),
]

BENCH = [
    *(
        Case(f"mamba2_130m_{length}", {"B": 1, "L": length, "H": 24, "P": 64, "N": 128, "G": 1}, CASES[3].options)
        for length in (64, 512, 2048)
    ),
    Case("mamba2_130m_batch", {"B": 8, "L": 256, "H": 24, "P": 64, "N": 128, "G": 1}, CASES[3].options),
    *(
        Case(f"long_{length}", {"B": 1, "L": length, "H": 2, "P": 64, "N": 64, "G": 1}, CASES[3].options)
        for length in (1 << 14, 1 << 17, 1 << 20)
    ),
]


def make(case: Case, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", seed: int = 0) -> dict[str, Any]:
    """Arguments of the public function."""
    draw = Draw(case, dtype, device, seed)
    batch, length, heads, head_dim, n, groups = (case.sizes[letter] for letter in "BLHPNG")
    maps = (batch, length, n) if groups == 1 else (batch, length, groups, n)
    arguments: dict[str, Any] = {
        "x": draw.normal(batch, length, heads, head_dim),
        "delta": draw.normal(batch, length, heads) if "softplus" in draw else draw.uniform(batch, length, heads, low=0.01),
        "A": draw.negative(heads),
        "B": draw.normal(*maps),
        "C": draw.normal(*maps),
    }
    if "D" in draw:
        arguments["D"] = draw.parameter(heads)
    if "D_wide" in draw:
        arguments["D"] = draw.parameter(heads, head_dim)
    if "bias" in draw:
        arguments["delta_bias"] = draw.parameter(heads)
    if "limit" in draw:
        arguments["delta_limit"] = (0.2, 1.1)
    if "state" in draw:
        arguments["state"] = draw.parameter(batch, heads, head_dim, n)
    if "reset_to" in draw:
        arguments["reset_to"] = draw.parameter(heads, head_dim, n)
    return arguments | {
        "delta_softplus": "softplus" in draw,
        "timeline": draw.timeline,
        "chunk_size": 5 if "chunks_of_5" in draw else None,
        "return_state": True,
    }
