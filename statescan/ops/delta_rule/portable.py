"""The delta rule by chunks. Writes of a position become positions of their own: the first decays, the last is read."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.ops.checks import exactly
from statescan.ops.delta_rule import op
from statescan.ops.matrix_state import scan
from statescan.ops.positions import existing


@op.implementation("portable")
def portable(
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
    dtype, writes, members = state.dtype, v.shape[2], v.shape[3] // q.shape[2]
    with exactly(v):
        q, k = (existing(tensor, mask).to(dtype).repeat_interleave(members, dim=-2) for tensor in (q, k))
        values = existing(v, mask).to(dtype)
        g = None if log_decay is None else existing(log_decay, mask).to(dtype)
        if beta is not None:
            strength = existing(beta, mask).to(dtype).unsqueeze(-1)
            values, read = strength * values, strength * k
            if g is not None:
                read = torch.cat([read[:, :, :1] * g.exp().unsqueeze(2), read[:, :, 1:]], dim=2)
        else:
            assert read is not None
            read = existing(read, mask).to(dtype)
        if writes > 1:
            q = F.pad(q.unsqueeze(2), (0, 0, 0, 0, writes - 1, 0)).flatten(1, 2)
            g = None if g is None else F.pad(g.unsqueeze(2), (0, 0, 0, 0, 0, writes - 1)).flatten(1, 2)
            reset = None if reset is None else F.pad(reset.unsqueeze(2), (0, writes - 1)).flatten(1, 2)
        y, last = scan(scale * q, k.flatten(1, 2), values.flatten(1, 2), read.flatten(1, 2), g, state, reset)
        return existing(y[:, writes - 1 :: writes], mask).to(v.dtype), last
