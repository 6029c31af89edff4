"""The matrix LSTM as a plain loop: the formulas of the op, one position at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.ops.mlstm import op
from statescan.ops.positions import existing

FLOOR = 80.0
"""Largest exponent of e^{-m}: float32 ends at 88."""


@op.implementation("reference")
def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i_raw: Tensor,
    f_raw: Tensor,
    scale: float,
    eps: float,
    C: Tensor,
    n: Tensor,
    m: Tensor,
    reset: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y (B, L, H, V) and the last C (B, H, K, V), n (B, H, K) and m (B, H)."""
    queries, keys, values, i, f = (existing(tensor, mask).to(C.dtype) for tensor in (q, k, v, i_raw, f_raw))
    outputs = []
    for t in range(v.shape[1]):
        if reset is not None:
            again = reset[:, t, None]
            C, n, m = torch.where(again[..., None, None], 0.0, C), torch.where(again[..., None], 0.0, n), torch.where(again, 0.0, m)
        kept = F.logsigmoid(f[:, t]) + m
        new_m = torch.maximum(kept, i[:, t])
        forget, put = (kept - new_m).exp().unsqueeze(-1), (i[:, t] - new_m).exp().unsqueeze(-1)
        write = put * keys[:, t]
        new_C = forget.unsqueeze(-1) * C + write.unsqueeze(-1) * values[:, t].unsqueeze(-2)
        new_n = forget * n + write
        if mask is not None:
            here = mask[:, t, None]
            new_C, new_n = torch.where(here[..., None, None], new_C, C), torch.where(here[..., None], new_n, n)
            new_m = torch.where(here, new_m, m)
        C, n, m = new_C, new_n, new_m
        query = scale * queries[:, t]
        through = (n * query).sum(-1, keepdim=True)
        divisor = torch.maximum(through.abs(), (-m).clamp(max=FLOOR).exp().unsqueeze(-1)) + eps
        outputs.append((C * query.unsqueeze(-1)).sum(-2) / divisor)
    return existing(torch.stack(outputs, dim=1), mask).to(v.dtype), C, n, m
