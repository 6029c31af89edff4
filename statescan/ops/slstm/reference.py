"""The scalar LSTM as a plain loop: the formulas of the op, one position at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.ops.positions import existing
from statescan.ops.slstm import op


@op.implementation("reference")
def reference(
    gates: Tensor, R: Tensor, h: Tensor, c: Tensor, n: Tensor, m: Tensor, reset: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y (B, L, H, P) and the last h, c, n and m, each (B, H, P)."""
    given, R = existing(gates, mask).to(h.dtype), R.to(h.dtype)
    outputs = []
    for t in range(gates.shape[1]):
        if reset is not None:
            again = reset[:, t, None, None]
            h, c, n, m = (torch.where(again, 0.0, old) for old in (h, c, n, m))
        i, f, z, o = (given[:, t] + torch.einsum("ghpq,bhq->bghp", R, h)).unbind(1)
        kept = F.logsigmoid(f) + torch.where(n == 0, float("-inf"), m)
        new_m = torch.maximum(kept, i)
        forget, put = (kept - new_m).exp(), (i - new_m).exp()
        new_c, new_n = forget * c + put * z.tanh(), forget * n + put
        new_h = o.sigmoid() * new_c / new_n
        if mask is not None:
            here = mask[:, t, None, None]
            new_h, new_c = torch.where(here, new_h, h), torch.where(here, new_c, c)
            new_n, new_m = torch.where(here, new_n, n), torch.where(here, new_m, m)
        h, c, n, m = new_h, new_c, new_n, new_m
        outputs.append(h)
    return existing(torch.stack(outputs, dim=1), mask).to(gates.dtype), h, c, n, m
