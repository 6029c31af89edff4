"""The convolution as a plain loop: a window of the last K-1 existing inputs slides along."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.ops.causal_conv1d import op
from statescan.ops.checks import state_dtype
from statescan.ops.positions import existing


@op.implementation("reference")
def reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, state: Tensor, reset: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """y (B, L, E) and the window after the last position (B, K-1, E)."""
    dtype = state_dtype(x)
    inputs, weight, window = existing(x, mask).to(dtype), weight.to(dtype), state.to(dtype)
    outputs = []
    for t in range(x.shape[1]):
        if reset is not None:
            window = torch.where(reset[:, t, None, None], 0.0, window)
        taps = torch.cat([window, inputs[:, t : t + 1]], dim=1)  # (B, K, E)
        y = (taps * weight.T).sum(1)
        if bias is not None:
            y = y + bias.to(dtype)
        if activation == "silu":
            y = F.silu(y)
        if mask is None:
            window = taps[:, 1:]
        else:
            y = torch.where(mask[:, t, None], y, 0.0)
            window = torch.where(mask[:, t, None, None], taps[:, 1:], window)
        outputs.append(y)
    return torch.stack(outputs, dim=1).to(x.dtype), window.to(x.dtype)
