"""Tasks on real-valued signals: a delay, and an autoregression continued by what one has said oneself.

A row's score is the share of the target's energy that is explained: 1 - |y - target|^2 / |target|^2, no less than nothing.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from statescan.backbones import FlatBackbone
from statescan.data.tasks.base import Task, require
from statescan.parameters import parameter_groups
from statescan.registry import register


class Signals(NamedTuple):
    """Inputs (B, L), or frames (B, L, H, W), and targets alike, NaN where nothing is asked for; of the last ``horizon`` positions the
    inputs are what the model said at the position before."""

    ids: Tensor
    targets: Tensor
    horizon: int = 0

    def to(self, device: torch.device | str) -> Signals:
        """On another device."""
        return Signals(self.ids.to(device), self.targets.to(device), self.horizon)

    def take(self, rows: Tensor) -> Signals:
        """Some of the rows."""
        return Signals(self.ids[rows], self.targets[rows], self.horizon)

    def apart(self) -> Signals:
        """Frames as a signal a pixel, (B H W, L)."""
        ids, targets = (t if t.ndim == 2 else t.flatten(2).mT.flatten(0, 1) for t in (self.ids, self.targets))
        return Signals(ids, targets, self.horizon)

    def loss(self, model: nn.Module) -> Tensor:
        """Mean squared error, every input given."""
        asked = ~self.targets.isnan()
        return (model(self.ids) - self.targets)[asked].square().mean()

    def score(self, model: nn.Module) -> tuple[float, float]:
        """(explained energy, energy)."""
        y = continued(model, self.ids[:, : self.ids.shape[1] - self.horizon], self.horizon)
        asked = ~self.targets.isnan()
        energy = float(self.targets[asked].square().sum())
        return max(0.0, energy - float((y - self.targets)[asked].square().sum().nan_to_num(math.inf))), energy


def continued(model: Any, past: Tensor, horizon: int) -> Tensor:
    """Outputs (B, L + horizon) of a past (B, L), and of what the model itself went on with."""
    y, state = model.scan(past)
    said = [y[:, -1]]
    for _ in range(horizon):
        y_t, state = model.step(said[-1], state)
        said.append(y_t)
    return torch.cat([y, torch.stack(said[1:], 1)], 1) if horizon else y


class SignalModel(nn.Module):
    """One number a position in, one out: a Linear, a flat backbone without a last norm, a Linear."""

    def __init__(self, d_model: int, layers: str, parts: Mapping[str, Callable[[int], nn.Module]]) -> None:
        super().__init__()
        self.encoder = nn.Linear(1, d_model)
        self.backbone = FlatBackbone(d_model, layers, parts, norm_f=False)
        self.decoder = nn.Linear(d_model, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L) -> (B, L)."""
        return self.decoder(self.backbone(self.encoder(x.unsqueeze(-1)))).squeeze(-1)

    def scan(self, x: Tensor) -> tuple[Tensor, Any]:
        """The same, and the state."""
        h, state = self.backbone.scan(self.encoder(x.unsqueeze(-1)))
        return self.decoder(h).squeeze(-1), state

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """x (B,)."""
        h, state = self.backbone.step(self.encoder(x.unsqueeze(-1)), state)
        return self.decoder(h).squeeze(-1), state

    def parameter_groups(self, weight_decay: float = 0.1, lr: float | None = None) -> list[dict[str, Any]]:
        """Optimiser groups."""
        return parameter_groups(self, weight_decay=weight_decay, lr=lr)


class SignalTask(Task):
    """A task whose rows are :class:`Signals`."""

    vocab_size = 0

    @property
    def chance(self) -> float:
        return 0.0  # what saying zero explains

    def model(self, d_model: int, layers: str, parts: Mapping[str, Callable[[int], nn.Module]]) -> nn.Module:
        return SignalModel(d_model, layers, parts)

    @abstractmethod
    def draw(self, rows: int, rng: np.random.Generator) -> Signals:  # type: ignore[override]
        """Random rows."""


def low_pass(rows: int, length: int, cutoff: float, rng: np.random.Generator) -> np.ndarray:
    """White noise without the frequencies above a share of the Nyquist frequency, of unit variance, (rows, length)."""
    spectrum = np.fft.rfft(rng.standard_normal((rows, length)))
    spectrum[:, int(cutoff * (spectrum.shape[1] - 1)) + 1 :] = 0
    x = np.fft.irfft(spectrum, n=length)
    return x / x.std(1, keepdims=True)


def delayed(x: np.ndarray, delay: int) -> Signals:
    """The value some positions ago is asked for."""
    target = np.full_like(x, np.nan)
    target[:, delay:] = x[:, :-delay]
    return Signals(torch.from_numpy(x).float(), torch.from_numpy(target).float())


@register
@dataclass(frozen=True)
class DelaySignal(SignalTask):
    """The delay task on white noise, low-pass filtered: at t the value at t - delay (Voelker et al. 2019,
    https://papers.neurips.cc/paper/9689; Gu et al. 2022, https://arxiv.org/abs/2206.12037)."""

    length: int = 256
    delay: int = 64
    cutoff: float = 0.25

    def __post_init__(self) -> None:
        require(0 < self.delay < self.length, f"delay must lie in 1..length-1; got {self.delay} and {self.length}")
        require(0 < self.cutoff <= 1, f"cutoff is a share of the Nyquist frequency, in (0, 1]; got {self.cutoff}")

    def draw(self, rows: int, rng: np.random.Generator) -> Signals:  # type: ignore[override]
        return delayed(low_pass(rows, self.length, self.cutoff, rng), self.delay)


@register
@dataclass(frozen=True)
class FourierNoise(SignalTask):
    """A delay of a smooth signal; tested as it is, and with oscillations in the input that no training row had (Yu et al. 2023,
    https://arxiv.org/abs/2310.01698).

    The frequencies, in radians a position, are the largest imaginary parts of the eigenvalues of S4D's systems of 64 states that start from
    LegS, times a step of 0.002: there its transfer function leaves that of LegS most. With longer steps they lie beyond the Nyquist
    frequency, and nothing is seen.
    """

    length: int = 256
    delay: int = 16
    cutoff: float = 0.05
    frequencies: tuple[float, ...] = (0.2804, 0.3652, 0.5163, 0.8661, 2.6065)
    size: float = 0.3
    noise: bool = False

    def __post_init__(self) -> None:
        require(0 < self.delay < self.length, f"delay must lie in 1..length-1; got {self.delay} and {self.length}")
        require(all(0 < f < math.pi for f in self.frequencies), f"frequencies lie between 0 and pi; got {self.frequencies}")

    def tests(self) -> Mapping[str, Task]:
        return {"as trained": self, "with oscillations": replace(self, noise=True)}

    def draw(self, rows: int, rng: np.random.Generator) -> Signals:  # type: ignore[override]
        clean = delayed(low_pass(rows, self.length, self.cutoff, rng), self.delay)
        if not self.noise:
            return clean
        phase = 2 * np.pi * rng.random((rows, len(self.frequencies), 1))
        rings = self.size * np.cos(np.array(self.frequencies)[:, None] * np.arange(self.length) + phase).sum(1)
        return clean._replace(ids=clean.ids + torch.from_numpy(rings).float())


@register
@dataclass(frozen=True)
class Autoregression(SignalTask):
    """x_t = sum_i phi_i x_{t-i}, the same phi for all rows: oscillations at ``order / 2`` frequencies that never die away.

    Trained on the next value; tested on it, and on the next ``horizon`` values continued from a past of ``length`` (Zhang et al. 2023,
    https://arxiv.org/abs/2303.09489).
    """

    order: int = 4
    length: int = 64
    horizon: int = 64
    test_horizon: int = 0

    def __post_init__(self) -> None:
        require(self.order >= 2 and self.order % 2 == 0, f"order must be even and positive; got {self.order}")
        require(self.length > self.order and self.horizon >= 1, f"length must exceed the order={self.order}; got {self.length}")

    def tests(self) -> Mapping[str, Task]:
        return {"next value": self, f"{self.horizon} values ahead": replace(self, test_horizon=self.horizon)}

    def draw(self, rows: int, rng: np.random.Generator) -> Signals:  # type: ignore[override]
        n = self.order // 2
        frequency = 0.35 + 1.1 * np.arange(n) / n  # radians a position, the same for all
        phase = 2 * np.pi * rng.random((rows, n, 1))
        size = 0.5 + rng.random((rows, n, 1))
        t = np.arange(self.length + self.test_horizon + 1)
        x = (size * np.cos(frequency[:, None] * t + phase)).sum(1)
        asked = self.length - 1 if self.test_horizon else self.order
        target = x[:, 1:].copy()
        target[:, :asked] = np.nan
        return Signals(torch.from_numpy(x[:, :-1]).float(), torch.from_numpy(target).float(), self.test_horizon)
