"""The sum as it stands, one position after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.ops.vandermonde import op


@op.implementation("reference")
def reference(c: Tensor, z: Tensor, length: int) -> Tensor:
    """K (..., L)."""
    return torch.stack([(c * torch.exp(position * z).to(c.dtype)).sum(-1).real for position in range(length)], dim=-1)
