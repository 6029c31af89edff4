"""Linear attention by chunks."""

from __future__ import annotations

from torch import Tensor

from statescan.ops.checks import exactly
from statescan.ops.linear_attention import op
from statescan.ops.matrix_state import scan
from statescan.ops.positions import existing


@op.implementation("portable")
def portable(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, scale: float, state: Tensor, reset: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """y (B, L, H, V) and the last state (B, H, K, V)."""
    dtype, members = state.dtype, v.shape[2] // q.shape[2]
    with exactly(v):
        queries, keys = (existing(tensor, mask).to(dtype).repeat_interleave(members, dim=2) for tensor in (q, k))
        g = None if log_decay is None else existing(log_decay, mask).to(dtype)
        y, last = scan(scale * queries, keys, existing(v, mask).to(dtype), None, g, state, reset)
        return existing(y, mask).to(v.dtype), last
