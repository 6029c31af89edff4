"""Linear attention as a plain loop: the formula of the op, one position at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.ops.linear_attention import op
from statescan.ops.positions import existing


@op.implementation("reference")
def reference(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, scale: float, state: Tensor, reset: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """y (B, L, H, V) and the last state (B, H, K, V)."""
    dtype, members = state.dtype, v.shape[2] // q.shape[2]
    queries, keys = (existing(tensor, mask).to(dtype).repeat_interleave(members, dim=2) for tensor in (q, k))
    values = existing(v, mask).to(dtype)
    g = None if log_decay is None else existing(log_decay, mask).to(dtype)
    s, outputs = state, []
    for t in range(v.shape[1]):
        if reset is not None:
            s = torch.where(reset[:, t, None, None, None], 0.0, s)
        decayed = s if g is None else g[:, t].exp().unsqueeze(-1) * s
        moved = decayed + keys[:, t].unsqueeze(-1) * values[:, t].unsqueeze(-2)
        s = moved if mask is None else torch.where(mask[:, t, None, None, None], moved, s)
        outputs.append(scale * (s * queries[:, t].unsqueeze(-1)).sum(-2))
    return existing(torch.stack(outputs, dim=1), mask).to(v.dtype), s
