"""Raw steps that are given as a product."""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.ops.checks import exactly
from statescan.ops.positions import existing
from statescan.ops.products import linear


def multiplied(delta: Tensor, weight: Tensor | None, mask: Tensor | None) -> Tensor:
    """delta (B, L, R) times weight (E, R), in the wider of their dtypes under autocast too; delta itself without a weight."""
    if weight is None:
        return delta
    dtype = torch.promote_types(delta.dtype, weight.dtype)
    with exactly(delta):
        return linear(existing(delta, mask).to(dtype), weight.to(dtype))
