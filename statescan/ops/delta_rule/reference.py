"""The delta rule as a plain loop: the formulas of the op, one write at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.ops.delta_rule import op
from statescan.ops.positions import existing


@op.implementation("reference")
def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    log_decay: Tensor | None,
    read: Tensor | None,
    scale: float,
    state: Tensor,
    reset: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y (B, L, H, V) and the last state (B, H, K, V)."""
    dtype, members = state.dtype, v.shape[3] // q.shape[2]
    queries, keys = (existing(tensor, mask).to(dtype).repeat_interleave(members, dim=-2) for tensor in (q, k))
    values = existing(v, mask).to(dtype)
    g = None if log_decay is None else existing(log_decay, mask).to(dtype)
    strength, reads = (None if tensor is None else existing(tensor, mask).to(dtype) for tensor in (beta, read))
    s, outputs = state, []
    for t in range(v.shape[1]):
        if reset is not None:
            s = torch.where(reset[:, t, None, None, None], 0.0, s)
        moved = s if g is None else g[:, t].exp().unsqueeze(-1) * s
        for j in range(v.shape[2]):
            key, value = keys[:, t, j], values[:, t, j]
            if strength is not None:
                put = strength[:, t, j].unsqueeze(-1) * (value - (moved * key.unsqueeze(-1)).sum(-2))
            else:
                assert reads is not None
                put = value - ((s if j == 0 else moved) * reads[:, t, j].unsqueeze(-1)).sum(-2)
            moved = moved + key.unsqueeze(-1) * put.unsqueeze(-2)
        s = moved if mask is None else torch.where(mask[:, t, None, None, None], moved, s)
        outputs.append(scale * (s * queries[:, t].unsqueeze(-1)).sum(-2))
    return existing(torch.stack(outputs, dim=1), mask).to(v.dtype), s
