"""The matrix LSTM by chunks: once m is known everywhere, it is linear attention under the decay e^{lf + m_{t-1} - m_t}, which is at most 1,
with keys e^{i - m} k and one more value channel of ones for n."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.ops.checks import exactly
from statescan.ops.diagonal_scan.portable import linear_scan
from statescan.ops.matrix_state import scan
from statescan.ops.mlstm import op
from statescan.ops.mlstm.reference import FLOOR, reference
from statescan.ops.positions import existing

Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""q, k (B, L, H, K), v (B, L, H, V), log_decay (B, L, H), state (B, H, K, V) -> y (B, L, H, V) and the last state."""


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
    if v.shape[1] == 1 and not torch.compiler.is_compiling():  # decoding: nothing to do in parallel
        with exactly(v):
            return reference(q, k, v, i_raw, f_raw, scale, eps, C, n, m, reset, mask)

    def attend(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return scan(scale * q, k, v, None, log_decay.unsqueeze(-1), state, reset)

    return by_attention(attend, q, k, v, i_raw, f_raw, eps, C, n, m, reset, mask)


def by_attention(
    attend: Scan, q: Tensor, k: Tensor, v: Tensor, i_raw: Tensor, f_raw: Tensor, eps: float, C: Tensor, n: Tensor, m: Tensor,
    reset: Tensor | None, mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The whole op around a linear attention that scales its queries and knows the resets.

    What C, n and y would be without m does not depend on m, but for eps and for the scale of the last C and n. So m counts as a constant
    (``fixed``), and what does depend on it is written beside, as a factor of 1 with the right derivative. Through the decays and the keys
    the derivatives by m would cancel only up to rounding, and add up along the sequence.
    """
    dtype = C.dtype
    with exactly(v):
        queries, keys, values = (existing(tensor, mask).to(dtype) for tensor in (q, k, v))
        i = existing(i_raw.to(dtype), mask, float("-inf"))
        lf = existing(F.logsigmoid(existing(f_raw, mask).to(dtype)), mask)
        top = largest(lf, i, m, reset)
        fixed, start = top.detach(), m.detach()
        before = torch.cat([start.unsqueeze(1), fixed], dim=1)[:, :-1]
        if reset is not None:
            before = torch.where(reset.unsqueeze(-1), 0.0, before)
        write = (i - fixed).exp().unsqueeze(-1) * keys
        summed, last = attend(
            queries, write, torch.cat([values, torch.ones_like(values[..., :1])], dim=-1), lf + before - fixed,
            torch.cat([C, n.unsqueeze(-1)], dim=-1) * (m - start).exp()[..., None, None],
        )  # fmt: skip
        one = (top - fixed).exp()
        floor = (-fixed).clamp(max=FLOOR).exp()
        divisor = torch.maximum(summed[..., -1:].abs(), floor.unsqueeze(-1)) + eps * one.unsqueeze(-1)
        y = existing(summed[..., :-1] / divisor, mask).to(v.dtype)
        last = last / one[:, -1, :, None, None]
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
