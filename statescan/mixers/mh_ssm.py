"""Multi-head state-space models: heads of diagonal systems with dynamics of their own, half of which gate the other half.

Paper: Fathullah et al., "Multi-Head State Space Model for Speech Recognition", 2023, https://arxiv.org/abs/2305.12498. Its text beyond the
abstract was not at hand: the projections and the place of the gate are as others describe them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan import dynamics as dyn
from statescan.layers.linear import Linear
from statescan.mixers.s4d import S4D, S4DState
from statescan.ops.checks import check_positive
from statescan.protocols import Bus, State
from statescan.registry import register
from statescan.timeline import Timeline, hide


@register
class MultiHeadSSM(S4D):
    """Attention's place in an encoder layer::

        u = in_proj(x)
        y = S4D systems on u, the channels of a head sharing A and B
        out = out_proj(dropout(y[first heads] gelu(y[last heads])))

    Channel d belongs to head d mod H; gated, head i of the first half meets head i of the last. For both directions put it into
    :class:`Bidirectional`.

    Args:
        d_model: width D.
        heads: H, which divides D; even, if gated.
        d_state: size N of each real system.
        gated: half of the heads gate the other half; else out_proj(dropout(y)).
        init: A, as for S4D.
        dt_min, dt_max: initial steps are log-uniform between them, one a channel.
        dropout: before out_proj.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`S4DState`.
    """

    examples = ({"heads": 4, "d_state": 4}, {"heads": 1, "d_state": 6, "gated": False, "init": "lin"})

    def __init__(
        self,
        d_model: int,
        heads: int = 8,
        d_state: int = 64,
        *,
        gated: bool = True,
        init: dyn.DiagonalInit = "legs",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dropout: float = 0.0,
    ) -> None:
        check_positive(d_model=d_model, heads=heads)
        if d_model % heads or (gated and heads % 2):
            raise ValueError(f"heads must divide d_model, and be even if they gate each other; got {heads} and {d_model}")
        super().__init__(
            d_model, d_state, init=init, n_ssm=heads, dt_min=dt_min, dt_max=dt_max, activation="none", final_act="none", dropout=dropout
        )
        self.heads, self.gated = heads, gated
        self.in_proj = Linear(d_model, d_model)
        if gated:
            self.out_proj = Linear(d_model // 2, d_model)

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: State | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
        readout_back: Tensor | None = None,
    ) -> Any:
        u = self.in_proj(hide(x, timeline))
        return super().forward(u, timeline, state=state, return_state=return_state, bus=bus, readout_back=readout_back)

    def step(self, x: Tensor, state: State, timeline: Timeline | None = None, bus: Bus | None = None) -> tuple[Tensor, S4DState]:
        """x (B, D); the recurrence once."""
        if timeline is not None and timeline.mask is not None:
            x = torch.where(timeline.mask.unsqueeze(-1), x, 0)
        return super().step(self.in_proj(x), state, timeline, bus)  # type: ignore[return-value]

    def finish(self, y: Tensor) -> Tensor:
        """The gate between heads, dropout, out_proj."""
        if self.gated:
            value, gate = y.unflatten(-1, (-1, 2, self.heads // 2)).unbind(-2)
            y = (value * F.gelu(gate)).flatten(-2)
        return super().finish(y)
