"""Copy me: a gated linear recurrence, the smallest mixer that obeys every law. Replace this line by what the paper calls it.

Paper: authors, "title", year, link.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from statescan.layers.linear import Linear
from statescan.ops import diagonal_scan
from statescan.ops.checks import state_dtype
from statescan.protocols import Bus, CausalMixer
from statescan.state import state as declare_state
from statescan.timeline import Timeline, hide


@declare_state
class TemplateState(NamedTuple):
    """Float32."""

    h: Tensor
    """(B, E)"""


# @register goes here: then Specs, the command line and the laws find the class by its name.
class Template(CausalMixer):
    """What the layer computes, as formulas::

        [v, f] = in_proj(x)
        a_t    = sigmoid(f_t + gate_bias)
        h_t    = a_t h_{t-1} + (1 - a_t) v_t
        y      = out_proj(h)

    Args:
        d_model: width D.
        expand: inner width E = expand * d_model.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`TemplateState`.
    """

    has_time = False  # True: it accepts timeline.interval
    dynamics = ("gate_bias",)  # stays in float32, no weight decay
    residual_outputs = ("out_proj",)  # writes into the residual stream

    def __init__(self, d_model: int, expand: float = 1) -> None:
        super().__init__()
        self.d_inner = int(expand * d_model)
        self.in_proj = Linear(d_model, 2 * self.d_inner)
        self.gate_bias = nn.Parameter(torch.linspace(0.0, 4.0, self.d_inner))
        self.out_proj = Linear(self.d_inner, d_model)

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: TemplateState | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        if timeline is not None:
            timeline = timeline.without_interval(type(self).__name__)
        v, f = self.in_proj(hide(x, timeline)).chunk(2, dim=-1)
        dtype = state_dtype(x)
        a = torch.sigmoid(f.to(dtype) + self.gate_bias)
        h, last = diagonal_scan(a, (1 - a) * v, state=None if state is None else state.h, timeline=timeline, return_state=True)
        y = hide(self.out_proj(h.to(v.dtype)), timeline)
        return (y, TemplateState(last)) if return_state else y

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> TemplateState:
        """Zeros."""
        like = self.gate_bias
        return TemplateState(like.new_zeros(batch_size, self.d_inner, device=like.device if device is None else device))
