"""Raw steps that are given as a product."""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.ops.checks import exactly
from statescan.ops.positions import existing
from statescan.ops.products import linear


def multiplied(delta: Tensor, weight: Tensor | None, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    """delta (B, L, R) times weight (E, R), in ``dtype`` under autocast too; delta itself without a weight."""
    if weight is None:
        return delta
    with exactly(delta):
        return linear(existing(delta, mask).to(dtype), weight.to(dtype))
