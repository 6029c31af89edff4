"""The convolution as a sum of shifted inputs: K multiply-adds over the whole sequence, no loop over positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.ops.causal_conv1d import op
from statescan.ops.checks import state_dtype
from statescan.ops.positions import existing


@op.implementation("portable")
def portable(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, state: Tensor, reset: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """y (B, L, E) and the last K-1 existing inputs since the last reset (B, K-1, E).

    Taps count existing positions, so under a mask these are moved to the front, convolved, and moved back. A tap of another segment
    (a segment begins at a reset; the incoming state belongs to segment 0) is replaced by zero.
    """
    batch, length, width = x.shape
    dtype, before = state_dtype(x), weight.shape[1] - 1
    inputs = existing(x, mask)
    segment = None if reset is None else reset.long().cumsum(1)
    final = None if segment is None else segment[:, -1:]
    if mask is not None:
        order = torch.argsort(mask.to(torch.uint8), dim=1, descending=True, stable=True)
        inputs = inputs.gather(1, order.unsqueeze(-1).expand(-1, -1, width))
        segment = None if segment is None else segment.gather(1, order)
    history = torch.cat([state, inputs], dim=1).to(dtype)  # (B, K-1+L, E)
    origin = None if segment is None else torch.cat([segment.new_zeros(batch, before), segment], dim=1)

    taps = weight.to(dtype)
    y = history[:, before:] * taps[:, before]
    for k in range(before):
        tap = history[:, k : k + length]
        if segment is not None and origin is not None:
            tap = torch.where((origin[:, k : k + length] == segment).unsqueeze(-1), tap, 0.0)
        y = torch.addcmul(y, tap, taps[:, k])
    if bias is not None:
        y = y + bias.to(dtype)
    if activation == "silu":
        y = F.silu(y)

    if mask is None:
        last, last_origin = history[:, length:], None if origin is None else origin[:, length:]
    else:
        place = (mask.long().cumsum(1) - 1).clamp(min=0)
        y = existing(y.gather(1, place.unsqueeze(-1).expand(-1, -1, width)), mask)
        tail = mask.long().sum(1, keepdim=True) + torch.arange(before, device=x.device)  # (B, K-1)
        last = history.gather(1, tail.unsqueeze(-1).expand(-1, -1, width))
        last_origin = None if origin is None else origin.gather(1, tail)
    if last_origin is not None and final is not None:
        last = torch.where((last_origin == final).unsqueeze(-1), last, 0.0)
    return y.to(x.dtype), last.to(x.dtype)
