"""The selective scan as a plain loop: the formula of the op, one position at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.ops.checks import exactly
from statescan.ops.positions import existing
from statescan.ops.selective_scan import op


@op.implementation("reference")
def reference(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_weight: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    state: Tensor,
    reset_to: Tensor | None,
    reset: Tensor | None,
    mask: Tensor | None,
    interval: Tensor | float | None,
    return_states: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """y (B, L, E), the last state (B, E, N) and all states (B, L, E, N) or None."""
    dtype, length = state.dtype, x.shape[1]
    inputs, delta, B, C = (existing(tensor, mask).to(dtype) for tensor in (x, delta, B, C))
    if delta_weight is not None:
        with exactly(delta):
            delta = delta @ delta_weight.to(dtype).T
    A = A.to(dtype)
    members = x.shape[2] // B.shape[2]  # channels in a group
    B, C = B.repeat_interleave(members, dim=2), C.repeat_interleave(members, dim=2)  # (B, L, E, N)
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype)
    if delta_softplus:
        delta = F.softplus(delta)
    if isinstance(interval, Tensor):
        interval = existing(interval.to(dtype), mask).unsqueeze(-1)
    if interval is not None:
        delta = delta * interval

    h, outputs, states = state, [], []
    for t in range(length):
        if reset is not None:
            assert reset_to is not None
            h = torch.where(reset[:, t, None, None], reset_to, h)
        decay = torch.exp(delta[:, t, :, None] * A)
        moved = decay * h + (delta[:, t] * inputs[:, t]).unsqueeze(-1) * B[:, t]
        h = moved if mask is None else torch.where(mask[:, t, None, None], moved, h)
        outputs.append((C[:, t] * h).sum(-1))
        states.append(h)
    y = torch.stack(outputs, dim=1)
    if D is not None:
        y = y + D.to(dtype) * inputs
    if z is not None:
        y = y * F.silu(existing(z, mask).to(dtype))
    return existing(y, mask).to(x.dtype), h, torch.stack(states, dim=1) if return_states else None
