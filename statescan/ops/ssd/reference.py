"""The ssd recurrence as a plain loop: the formula of the op, one position at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.ops.positions import existing
from statescan.ops.ssd import op


@op.implementation("reference")
def reference(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    delta_limit: tuple[float, float],
    state: Tensor,
    reset_to: Tensor | None,
    reset: Tensor | None,
    mask: Tensor | None,
    interval: Tensor | float | None,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor]:
    """y (B, L, H, P) and the last state (B, H, P, N). There are no chunks here, whatever ``chunk_size`` says."""
    dtype, length = state.dtype, x.shape[1]
    inputs, delta, B, C = (existing(tensor, mask).to(dtype) for tensor in (x, delta, B, C))
    A = A.to(dtype)
    members = x.shape[2] // B.shape[2]  # heads in a group
    B, C = B.repeat_interleave(members, dim=2), C.repeat_interleave(members, dim=2)  # (B, L, H, N)
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype)
    if delta_softplus:
        delta = F.softplus(delta)
    delta = delta.clamp(*delta_limit)
    if isinstance(interval, Tensor):
        interval = existing(interval.to(dtype), mask).unsqueeze(-1)
    if interval is not None:
        delta = delta * interval

    h, outputs = state, []
    for t in range(length):
        if reset is not None:
            assert reset_to is not None
            h = torch.where(reset[:, t, None, None, None], reset_to, h)
        decay = torch.exp(delta[:, t] * A)[..., None, None]
        moved = decay * h + (delta[:, t, :, None] * inputs[:, t]).unsqueeze(-1) * B[:, t].unsqueeze(-2)
        h = moved if mask is None else torch.where(mask[:, t, None, None, None], moved, h)
        outputs.append((h * C[:, t].unsqueeze(-2)).sum(-1))
    y = torch.stack(outputs, dim=1)
    if D is not None:
        y = y + D.to(dtype) * inputs
    return existing(y, mask).to(x.dtype), h
