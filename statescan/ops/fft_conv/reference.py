"""The sums as they stand, lag by lag."""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.ops.fft_conv import op


@op.implementation("reference")
def reference(u: Tensor, k: Tensor, back: Tensor | None) -> Tensor:
    """y (B, L, D)."""
    length = u.shape[1]
    y = torch.zeros_like(u)
    for lag in range(min(length, k.shape[1])):
        y = y + torch.cat([torch.zeros_like(u[:, :lag]), u[:, : length - lag] * k[:, lag]], dim=1)
    for lag in range(1, 0 if back is None else min(length, back.shape[1] + 1)):
        assert back is not None
        y = y + torch.cat([u[:, lag:] * back[:, lag - 1], torch.zeros_like(u[:, :lag])], dim=1)
    return y
