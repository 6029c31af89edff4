"""Gated short convolution: two gates around a filter of a few taps, and no recurrence.

Model: Liquid AI, LFM2, 2025, https://www.liquid.ai/blog/liquid-foundation-models-v2-our-second-series-of-generative-ai-models. Parameter
names are those of the released checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from statescan.layers import CausalConv1d
from statescan.layers.linear import Linear
from statescan.ops.checks import check_positive, state_dtype
from statescan.protocols import Bus, CausalMixer
from statescan.registry import register
from statescan.state import state as declare_state
from statescan.timeline import Timeline, hide


@declare_state
class ShortConvState(NamedTuple):
    """Float32."""

    conv: Tensor
    """(B, K-1, D): the last existing inputs of the convolution, oldest first."""


@register
class GatedShortConv(CausalMixer):
    """Linear in what is convolved::

        [B, C, x] = in_proj(u)
        y         = out_proj(C * conv(B * x))

    Args:
        d_model: width D.
        d_conv: taps, K.
        bias: biases of the projections and the convolution.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`ShortConvState`.
    """

    residual_outputs = ("out_proj",)
    examples = ({}, {"d_conv": 4, "bias": True})

    def __init__(self, d_model: int, d_conv: int = 3, bias: bool = False) -> None:
        super().__init__()
        check_positive(d_model=d_model, d_conv=d_conv)
        self.memory = d_conv - 1
        self.in_proj = Linear(d_model, 3 * d_model, bias=bias)
        self.conv = CausalConv1d(d_model, d_conv, bias=bias)
        self.out_proj = Linear(d_model, d_model, bias=bias)

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: ShortConvState | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        if timeline is not None:
            timeline = timeline.without_interval(type(self).__name__)
        before, after, x = self.in_proj(hide(x, timeline)).chunk(3, dim=-1)
        y, conv = self.conv(before * x, timeline, state=None if state is None else state.conv)
        y = hide(self.out_proj(after * y), timeline)
        return (y, ShortConvState(conv)) if return_state else y

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> ShortConvState:
        """Zeros."""
        weight = self.conv.weight
        where = weight.device if device is None else device
        return ShortConvState(torch.zeros(batch_size, weight.shape[2] - 1, weight.shape[0], dtype=state_dtype(weight), device=where))
