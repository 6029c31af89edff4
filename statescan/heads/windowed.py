"""Forecasting from whole windows: networks that keep no state between one forecast and the next."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from statescan.ops.positions import latest
from statescan.protocols import Bus
from statescan.timeline import Timeline, hide


class WindowForecaster(nn.Module):
    """A window of the past, without gaps, to what follows: what a published forecaster has to do to be fitted and judged like any other.

    Of the constructor's arguments a fit sets those called ``length`` (positions of the past), ``horizon`` and ``d_input`` (variates).
    """

    reads_across: ClassVar[bool] = False
    """Its variates see each other: it is given all of them together. Others forecast each by itself, with the same weights."""

    def forecast(self, x: Tensor, horizon: int) -> Tensor:
        """The past (B, L, V) -> the values that follow, (B, horizon, V)."""
        raise NotImplementedError

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """What training lowers, for a past x (B, L, V) and what came after it, y (B, horizon, V). NaN in y was not observed."""
        raise NotImplementedError

    def parameter_groups(self, weight_decay: float = 0.0, lr: float | None = None) -> list[dict[str, Any]]:
        """Optimiser groups; the default decay is the published one."""
        raise NotImplementedError


class Windowed(nn.Module):
    """A :class:`WindowForecaster` in the place of a :class:`~statescan.heads.horizon.SeriesModel`: means, no quantiles, no state.

    Gaps in a window hold what was last observed before them, and before the first observation the first one.
    """

    quantiles: tuple[float, ...] = ()

    def __init__(self, network: WindowForecaster, horizon: int) -> None:
        super().__init__()
        self.network, self.horizon = network, horizon

    def read(
        self, values: Tensor, timeline: Timeline | None = None, state: None = None, bus: Bus | None = None
    ) -> tuple[Tensor, Tensor, None]:
        """(the window without gaps (B, 1, L, V), its last values (B, 1, V), no state)."""
        values = hide(values, None if timeline is None or timeline.mask is None else Timeline(mask=timeline.mask))
        observed = ~values.isnan()
        if timeline is not None and timeline.mask is not None:
            observed = observed & timeline.mask.unsqueeze(2)
        known = torch.where(observed, values, 0)
        first = latest(known.flip(1), observed.flip(1), None, None)[:, -1]
        window = latest(known, observed, None, first)
        return window.unsqueeze(1), window[:, -1:], None

    def forecast(self, window: Tensor, last: Tensor) -> Tensor:
        """Windows (B, L, V) -> (B, horizon, V, 1)."""
        return self.network.forecast(window, self.horizon).unsqueeze(-1)

    def teach(self, values: Tensor, target: Tensor) -> Tensor:
        """The network's own loss, for windows (B, L, V) as they were read and what followed (B, horizon, V)."""
        return self.network.loss(self.read(values)[0][:, 0], target)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean squared error of forecasts (..., V, 1); a NaN target (..., V) does not count."""
        return mse_of_seen(output[..., 0], target)

    def parameter_groups(self, weight_decay: float = 0.0, lr: float | None = None) -> list[dict[str, Any]]:
        """The network's, with the decay that it was published with."""
        return self.network.parameter_groups(lr=lr)


def mse_of_seen(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error where the target is not NaN; zero where it is nowhere."""
    seen = ~target.isnan()
    return (output[seen] - target[seen]).square().sum() / seen.sum().clamp_min(1)
