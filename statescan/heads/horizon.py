"""Forecasting at every position: what a causal backbone has read so far, to the next values, their means and their quantiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from statescan.backbones import FlatBackbone, FlatState
from statescan.layers.linear import Linear
from statescan.ops.positions import latest
from statescan.parameters import parameter_groups
from statescan.protocols import Bus
from statescan.registry import register
from statescan.spec import Spec
from statescan.state import state as declare_state
from statescan.timeline import Timeline, hide


@declare_state
class SeriesState(NamedTuple):
    """Float32."""

    last: Tensor
    """(B, V): the last value observed of each variate; zero before the first."""
    backbone: FlatState


def check_quantiles(quantiles: Sequence[float]) -> None:
    """Raise unless they are levels between 0 and 1, rising."""
    if list(quantiles) != sorted(set(quantiles)) or not all(0 < q < 1 for q in quantiles):
        raise ValueError(f"quantiles must be levels between 0 and 1, rising; got {tuple(quantiles)}")


@register
class SeriesModel(nn.Module):
    """Values so far to the values ahead::

        x_t   = in_proj([values_t, observed_t, log(interval_t)])    missing values are zeros there
        h     = backbone(x)                                         sees the interval itself too, where its mixers know of time
        out   = last observed value of each variate + head(h)       (horizon, V, 1 + quantiles)

    Values are expected about zero with spread one (:class:`statescan.estimators.Forecaster` scales them); NaN is a value that was not
    observed. Of the last axis of the output the first is the mean, the others are the quantiles.

    Args:
        variates: V.
        horizon: steps ahead, all forecast at once.
        quantiles: levels in (0, 1), rising.
        d_model: width D of the backbone.
        layers: pattern over the names of ``parts``.
        parts: name (one letter) -> mixer or layer; by default M is Mamba and F a GatedMLP of width 2 D.
        uneven: the time between observations varies: an input more, and ``timeline.interval`` is read.

    Shapes: (B, L, V) -> (B, L, horizon, V, 1 + quantiles). State: :class:`SeriesState`.
    """

    def __init__(
        self,
        variates: int,
        horizon: int,
        quantiles: Sequence[float] = (0.1, 0.5, 0.9),
        d_model: int = 64,
        layers: str = "(MF)*2",
        parts: Mapping[str, Callable[[int], nn.Module]] | None = None,
        uneven: bool = False,
    ) -> None:
        super().__init__()
        if variates < 1 or horizon < 1:
            raise ValueError(f"variates and horizon must be positive; got {variates} and {horizon}")
        check_quantiles(quantiles)
        self.variates, self.horizon, self.quantiles, self.uneven = variates, horizon, tuple(quantiles), uneven
        self.in_proj = Linear(2 * variates + uneven, d_model)
        self.backbone = FlatBackbone(d_model, layers, parts or {"M": Spec("Mamba"), "F": Spec("GatedMLP", d_ff=2 * d_model)})
        self.head = Linear(d_model, horizon * variates * (1 + len(self.quantiles)))
        nn.init.zeros_(self.head.weight)  # training begins from the forecast that nothing changes
        nn.init.zeros_(self.head.bias)
        self.times_backbone = uneven and all(getattr(layer.mixer, "has_time", True) for layer in self.backbone.layers)

    def forward(
        self,
        values: Tensor,
        timeline: Timeline | None = None,
        *,
        state: SeriesState | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        """Every position's forecast."""
        h, last, state = self.read(values, timeline, state, bus)
        out = hide(self.forecast(h, last).flatten(2), timeline).view(*values.shape[:2], self.horizon, self.variates, -1)
        return (out, state) if return_state else out

    def read(
        self, values: Tensor, timeline: Timeline | None = None, state: SeriesState | None = None, bus: Bus | None = None
    ) -> tuple[Tensor, Tensor, SeriesState]:
        """(features (B, L, D), last observed values (B, L, V), state): all that :meth:`forecast` needs, at any of the positions."""
        if values.ndim != 3 or values.shape[2] != self.variates:
            raise ValueError(f"values must be (B, L, {self.variates}); got {tuple(values.shape)}")
        if not self.uneven and timeline is not None and isinstance(timeline.interval, Tensor):
            raise ValueError("this model was made for even spacing: build it with uneven=True to give it intervals")
        values = hide(values, timeline)
        observed = ~values.isnan()
        known = torch.where(observed, values, 0)
        last = latest(known, observed, timeline, None if state is None else state.last)
        inputs = [known, observed.to(known.dtype)]
        if self.uneven:
            interval = torch.ones((), dtype=known.dtype) if timeline is None or timeline.interval is None else timeline.interval
            inputs.append(torch.as_tensor(interval).to(known).clamp_min(1e-6).log().expand(known.shape[:2]).unsqueeze(2))
        line = timeline if timeline is None or self.times_backbone else timeline._replace(interval=None)
        x = self.in_proj(hide(torch.cat(inputs, 2), timeline))
        h, after = self.backbone(x, line, state=None if state is None else state.backbone, return_state=True, bus=bus)
        return h, last, SeriesState(last[:, -1], after)

    def forecast(self, h: Tensor, last: Tensor) -> Tensor:
        """Features (..., D) and last values (..., V) -> (..., horizon, V, 1 + quantiles)."""
        out = self.head(h).unflatten(-1, (self.horizon, self.variates, 1 + len(self.quantiles)))
        return out + last.unsqueeze(-1).unsqueeze(-3)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean squared error of the mean, plus the mean pinball loss of the quantiles; a NaN target (..., horizon, V) does not count."""
        seen = ~target.isnan()
        error = torch.where(seen, target, 0).unsqueeze(-1) - output
        level = torch.tensor(self.quantiles, dtype=error.dtype, device=error.device)
        pinball = torch.maximum(level * error[..., 1:], (level - 1) * error[..., 1:]).sum(-1)
        return torch.where(seen, error[..., 0].square() + pinball, 0).sum() / seen.sum().clamp_min(1)

    def step(
        self, values: Tensor, state: SeriesState, timeline: Timeline | None = None, bus: Bus | None = None
    ) -> tuple[Tensor, SeriesState]:
        """One position: values (B, V)."""
        line = None if timeline is None else timeline.as_sequence()
        out, state = self(values.unsqueeze(1), line, state=state, return_state=True, bus=bus)
        return out.squeeze(1), state

    def init_state(self, batch_size: int, *, device: torch.device | str | None = None) -> SeriesState:
        """Nothing seen."""
        weight = self.in_proj.weight
        last = torch.zeros(batch_size, self.variates, dtype=weight.dtype, device=weight.device if device is None else device)
        return SeriesState(last, self.backbone.init_state(batch_size, device=device))

    def parameter_groups(self, weight_decay: float = 0.1, lr: float | None = None) -> list[dict[str, Any]]:
        """See :func:`statescan.parameters.parameter_groups`."""
        return parameter_groups(self, weight_decay=weight_decay, lr=lr)
