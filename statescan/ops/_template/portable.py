"""The same in parallel torch, on any device: O(L) memory, no loop over positions, a graph that serves every length."""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.ops._template import op
from statescan.ops.diagonal_scan.portable import linear_scan
from statescan.ops.positions import existing


@op.implementation("portable")
def portable(x: Tensor, decay: Tensor, state: Tensor, reset: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """y (B, L, D) and the last state (B, D)."""
    inputs = existing(x, mask).to(state.dtype)
    factor = existing(decay.to(state.dtype).expand_as(inputs), mask, 1.0)
    if reset is not None:
        factor = torch.where(reset.unsqueeze(-1), 0.0, factor)
    h = linear_scan(factor, inputs, state)
    return existing(h, mask).to(x.dtype), h[:, -1].clone()
