"""A plain loop that is obviously right, in any dtype, differentiable by autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.ops._template import op
from statescan.ops.positions import existing


@op.implementation("reference")
def reference(x: Tensor, decay: Tensor, state: Tensor, reset: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """y (B, L, D) and the last state (B, D)."""
    inputs, decay = existing(x, mask).to(state.dtype), decay.to(state.dtype)
    h, outputs = state, []
    for t in range(x.shape[1]):
        if reset is not None:
            h = torch.where(reset[:, t, None], 0.0, h)
        moved = decay * h + inputs[:, t]
        h = moved if mask is None else torch.where(mask[:, t, None], moved, h)
        outputs.append(h)
    return existing(torch.stack(outputs, dim=1), mask).to(x.dtype), h
