"""Experts: one tensor a matrix of each in a file, stacked in our MoE layer."""

from __future__ import annotations

import torch

from statescan.interop.keys import Reshape


def expert_keys(theirs: str, ours: str, count: int, parts: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")) -> list[Reshape]:
    """``theirs.E.{gate_proj,up_proj,down_proj}.weight`` of ``count`` experts; with two parts they are not gated."""
    *inner, outer = parts
    up = tuple(f"{theirs}.{e}.{part}.weight" for e in range(count) for part in inner)
    down = tuple(f"{theirs}.{e}.{outer}.weight" for e in range(count))
    stacked = f"{ours}.gate_up_proj" if len(inner) == 2 else f"{ours}.up_proj"
    return [
        Reshape(up, (stacked,), lambda *w: (torch.cat(w).unflatten(0, (count, -1)),), lambda w: w.flatten(0, 1).chunk(len(up))),
        Reshape(down, (f"{ours}.down_proj",), lambda *w: (torch.stack(w),), lambda w: w.unbind()),
    ]
