"""Forecasting: features of the past to values of the future, by a last layer that goes on without inputs."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from statescan.layers.linear import Linear
from statescan.mixers.companion import ClosedLoopCompanion, CompanionState
from statescan.registry import register
from statescan.timeline import Timeline, hide


def rmse(output: Tensor, target: Tensor) -> Tensor:
    """Root of the mean squared error over all elements."""
    return F.mse_loss(output, target).sqrt()


@register
class ClosedLoopForecast(nn.Module):
    """A closed-loop companion layer and a read-out of its values, fc(dropout(gelu(y))).

    Args:
        d_model: width D of the features.
        d_output: values a position, O.
        d_state: of the companion layer.
        dropout: before ``fc``.

    Calling it reads every position, (B, L, D) -> (B, L, O): a forecast of the next position's value, when trained so. :meth:`forecast`
    goes on from a state, which is a :class:`~statescan.mixers.companion.CompanionState`.
    """

    def __init__(self, d_model: int, d_output: int = 1, d_state: int = 64, dropout: float = 0.0) -> None:
        super().__init__()
        self.mixer = ClosedLoopCompanion(d_model, d_state)
        self.dropout = nn.Dropout(dropout)
        self.fc = Linear(d_model, d_output)

    def forward(
        self,
        features: Tensor,
        timeline: Timeline | None = None,
        *,
        state: CompanionState | None = None,
        return_state: bool = False,
    ) -> Any:
        """(B, L, D) -> (B, L, O), zeros at positions that do not exist; with ``return_state`` also the state behind the last."""
        y, state = self.mixer(features, timeline, state=state, return_state=True)
        y = hide(self.read(y), timeline)
        return (y, state) if return_state else y

    def read(self, y: Tensor) -> Tensor:
        """The companion layer's values (..., D) -> (..., O)."""
        return self.fc(self.dropout(F.gelu(y)))

    def forecast(self, state: CompanionState, horizon: int) -> Tensor:
        """The next ``horizon`` values, (B, horizon, O), from the state behind the past."""
        return self.read(self.mixer.roll(state, horizon))

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Root mean squared error."""
        return rmse(output, target)

    def next_input_loss(self, features: Tensor) -> Tensor:
        """RMSE between what the layer expects of its next input and what comes, from the position on where the delay line is full."""
        first = self.mixer.d_state
        if features.shape[1] <= first:
            raise ValueError(f"the past must be longer than the delay line: more than {first} positions; got {features.shape[1]}")
        return rmse(self.mixer.expect(features)[:, first - 1 : -1], features[:, first:])
