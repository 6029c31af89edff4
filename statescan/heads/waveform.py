"""Raw audio: samples as mu-law tokens, and waveforms from noise.

Papers: ITU-T G.711 for the companding; Ho et al., "Denoising Diffusion Probabilistic Models", 2020, https://arxiv.org/abs/2006.11239;
Kong et al., "DiffWave: A Versatile Diffusion Model for Audio Synthesis", 2021, https://arxiv.org/abs/2009.09761.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def mu_law_encode(wave: Tensor, levels: int = 256) -> Tensor:
    """Samples in [-1, 1] to int64 tokens 0 .. levels - 1: sign(x) log(1 + mu |x|) / log(1 + mu), mu = levels - 1, in equal steps."""
    mu = levels - 1
    companded = wave.sign() * torch.log1p(mu * wave.clamp(-1, 1).abs()) / math.log1p(mu)
    return ((companded + 1) / 2 * mu + 0.5).long()


def mu_law_decode(tokens: Tensor, levels: int = 256) -> Tensor:
    """Tokens to samples in [-1, 1], the inverse up to the rounding."""
    mu = levels - 1
    companded = 2 * tokens.to(torch.get_default_dtype()) / mu - 1
    return companded.sign() * torch.expm1(companded.abs() * math.log1p(mu)) / mu


def linear_encode(wave: Tensor, levels: int = 256) -> Tensor:
    """Samples in [-1, 1] to int64 levels 0 .. levels - 1 in equal steps."""
    return ((wave.clamp(-1, 1) + 1) / 2 * (levels - 1) + 0.5).long()


def linear_decode(tokens: Tensor, levels: int = 256) -> Tensor:
    """Levels to samples in [-1, 1], the inverse up to the rounding."""
    return 2 * tokens.to(torch.get_default_dtype()) / (levels - 1) - 1


class NoiseSchedule(NamedTuple):
    """A diffusion x_t = sqrt(alpha_bar_t) x + sqrt(1 - alpha_bar_t) noise, t = 0 .. T - 1."""

    beta: Tensor
    """(T,), float64"""
    alpha_bar: Tensor
    """(T,): the product of 1 - beta up to t."""

    @staticmethod
    def linear(steps: int, first: float = 1e-4, last: float = 0.02) -> NoiseSchedule:
        """beta from ``first`` to ``last`` in equal steps."""
        if steps < 1 or not 0 < first <= last < 1:
            raise ValueError(f"a schedule needs steps >= 1 and 0 < first <= last < 1; got {steps}, {first} and {last}")
        beta = torch.linspace(first, last, steps, dtype=torch.float64)
        return NoiseSchedule(beta, (1 - beta).cumprod(0))

    @property
    def sigma(self) -> Tensor:
        """(T,): the posterior's deviation, sqrt(beta_t (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t)); nothing at t = 0."""
        before = torch.cat([self.alpha_bar.new_ones(1), self.alpha_bar[:-1]])
        return (self.beta * (1 - before) / (1 - self.alpha_bar)).sqrt()

    def noised(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t of each row: x (B, ...), t int64 (B,), noise like x."""
        alpha_bar = self.alpha_bar[t].to(x).view(-1, *[1] * (x.ndim - 1))
        return alpha_bar.sqrt() * x + (1 - alpha_bar).sqrt() * noise

    def denoised(self, x: Tensor, t: int, noise: Tensor, fresh: Tensor) -> Tensor:
        """One step back, from x_t to x_{t-1}, with the predicted ``noise``, and ``fresh`` normal noise, scaled by sigma."""
        beta, alpha_bar, sigma = (float(values[t]) for values in (self.beta, self.alpha_bar, self.sigma))
        return (x - beta / math.sqrt(1 - alpha_bar) * noise) / math.sqrt(1 - beta) + sigma * fresh

    def loss(self, model: Callable[[Tensor, Tensor], Tensor], x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Mean squared error of the noise that ``model(x_t, t)`` predicts, at a random t a row."""
        t = torch.randint(len(self.beta), (x.shape[0],), generator=generator, device=x.device)
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return F.mse_loss(model(self.noised(x, t, noise), t), noise)

    @torch.no_grad()
    def sample(self, model: Callable[[Tensor, Tensor], Tensor], x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """From noise x_{T-1} = ``x`` (B, ...) to a sample, step by step."""
        for t in reversed(range(len(self.beta))):
            noise = model(x, torch.full((x.shape[0],), t, device=x.device))
            x = self.denoised(x, t, noise, torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device))
        return x
