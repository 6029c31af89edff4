"""How the bytes and scales of a quantised weight lie: in the order in which a kernel reads them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

SIDE = 16
"""Outputs side by side."""


def tile(rows: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Bytes (O, B) to (tiles, B / 4, 16, 4), scales (O, groups) to (tiles, groups, 16): zeros behind the last output."""
    missing = -rows.shape[0] % SIDE
    rows, scale = (F.pad(tensor, (0, 0, 0, missing)) for tensor in (rows, scale))
    weight = rows.unflatten(0, (-1, SIDE)).unflatten(2, (-1, 4)).transpose(1, 2)
    return weight.contiguous(), scale.unflatten(0, (-1, SIDE)).transpose(1, 2).contiguous()


def untile(weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The way back, of all outputs: bytes (tiles * 16, B) and scales (tiles * 16, groups)."""
    return weight.transpose(1, 2).flatten(2).flatten(0, 1), scale.transpose(1, 2).flatten(0, 1)
