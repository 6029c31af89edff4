"""The recurrence as a plain loop."""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.ops.diagonal_scan import op
from statescan.ops.positions import existing


@op.implementation("reference")
def reference(
    a: Tensor, b: Tensor, state: Tensor, reset_to: Tensor | None, reset: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """h (B, L, *M) and the last h (B, *M)."""
    batch, length = b.shape[:2]
    decay = existing(a.expand(batch, length, *a.shape[2:]), mask)
    inputs = existing(b, mask).to(state.dtype)
    decay = decay.to(state.dtype if decay.is_complex() else state.real.dtype)
    h, outputs = state, []

    def flag(at_t: Tensor) -> Tensor:
        return at_t.reshape(batch, *(1,) * (state.ndim - 1))

    for t in range(length):
        if reset is not None:
            assert reset_to is not None
            h = torch.where(flag(reset[:, t]), reset_to, h)
        moved = decay[:, t] * h + inputs[:, t]
        if mask is None:
            h = moved
            outputs.append(h)
        else:
            h = torch.where(flag(mask[:, t]), moved, h)
            outputs.append(torch.where(flag(mask[:, t]), h, 0.0))
    return torch.stack(outputs, dim=1).to(b.dtype), h
