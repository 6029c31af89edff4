"""The short causal depthwise convolution as a layer."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from statescan.ops import causal_conv1d
from statescan.ops.checks import state_dtype
from statescan.timeline import Timeline


class CausalConv1d(nn.Module):
    """Depthwise causal convolution on (B, L, E), with state; parameters are shaped and initialised as those of a depthwise ``nn.Conv1d``.

    It is not an ``nn.Conv1d``: tools that wrap one expect (B, E, L) and would be silently wrong here.
    """

    def __init__(self, width: int, kernel_size: int, bias: bool = True, activation: Literal["silu"] | None = None) -> None:
        super().__init__()
        self.activation: Literal["silu"] | None = activation
        bound = 1 / math.sqrt(kernel_size)
        self.weight = nn.Parameter(torch.empty(width, 1, kernel_size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(width).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Tensor, timeline: Timeline | None = None, *, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, L, E) and the last K-1 existing inputs (B, K-1, E) -> the output and the new tail (float32, or float64)."""
        y, tail = causal_conv1d(
            x, self.weight.squeeze(1), self.bias, activation=self.activation, state=state, timeline=timeline, return_state=True
        )
        return y, tail.to(state_dtype(x))

    def extra_repr(self) -> str:
        width, _, taps = self.weight.shape
        return f"{width}, kernel_size={taps}, bias={self.bias is not None}, activation={self.activation}"
