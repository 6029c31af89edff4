"""The matrix LSTM by chunks: once m is known everywhere, it is linear attention under the decay e^{lf + m_{t-1} - m_t}, which is at most 1,
with keys e^{i - m} k and one more value channel of ones for n."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.ops.diagonal_scan.portable import linear_scan
from statescan.ops.matrix_state import scan
from statescan.ops.mlstm import op
from statescan.ops.mlstm.reference import FLOOR, reference
from statescan.ops.positions import existing


@op.implementation("portable")
def portable(
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
    dtype = C.dtype
    with torch.autocast(v.device.type, enabled=False):
        if v.shape[1] == 1 and not torch.compiler.is_compiling():  # decoding: nothing to do in parallel
            return reference(q, k, v, i_raw, f_raw, scale, eps, C, n, m, reset, mask)
        queries, keys, values = (existing(tensor, mask).to(dtype) for tensor in (q, k, v))
        i = existing(i_raw.to(dtype), mask, float("-inf"))
        lf = existing(F.logsigmoid(existing(f_raw, mask).to(dtype)), mask)
        top = largest(lf, i, m, reset)
        before = torch.cat([m.unsqueeze(1), top], dim=1)[:, :-1]
        if reset is not None:
            before = torch.where(reset.unsqueeze(-1), 0.0, before)
        write = (i - top).exp().unsqueeze(-1) * keys
        ones = torch.ones_like(values[..., :1])
        summed, last = scan(
            scale * queries, write, torch.cat([values, ones], dim=-1), None, (lf + before - top).unsqueeze(-1),
            torch.cat([C, n.unsqueeze(-1)], dim=-1), reset,
        )  # fmt: skip
        divisor = torch.maximum(summed[..., -1:].abs(), (-top).clamp(max=FLOOR).exp().unsqueeze(-1)) + eps
        y = existing(summed[..., :-1] / divisor, mask).to(v.dtype)
        return y, last[..., :-1].contiguous(), last[..., -1].contiguous(), top[:, -1].clone()


def largest(lf: Tensor, i: Tensor, m: Tensor, reset: Tensor | None) -> Tensor:
    """m_t = max(lf_t + m_{t-1}, i_t), with m_{t-1} = 0 at a reset: lf, i (B, L, H), m (B, H) -> (B, L, H).

    The running maximum of i less the sum of lf says at which positions i wins; between those m is a plain sum.
    """
    if reset is not None:
        again = reset.unsqueeze(-1)
        i = torch.where(again, torch.maximum(lf, i), i)
    # Sums over the whole sequence lose the digits of single terms, so they are float64, and decide which is larger, no more.
    wide = torch.float32 if m.device.type == "mps" else torch.float64
    lifted = i.detach().to(wide) - lf.detach().to(wide).cumsum(1)
    start = m.detach().to(wide).unsqueeze(1)
    if reset is not None:
        everything = torch.cat([start, lifted], dim=1)
        finite = everything.isfinite()
        lowest, highest = (
            torch.where(finite, everything, 0.0).amin(1, keepdim=True),
            torch.where(finite, everything, 0.0).amax(1, keepdim=True),
        )
        lifted = lifted + again.cumsum(1) * (highest - lowest + 1)  # whatever stands behind a reset is above all before it
    best = torch.cat([start, lifted], dim=1).cummax(1).values
    wins = lifted > best[:, :-1]
    return linear_scan((~wins).to(lf.dtype), torch.where(wins, i, lf), m)
