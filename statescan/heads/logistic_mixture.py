"""A mixture of logistic distributions over equally spaced levels: the output of a model of 8- or 16-bit samples.

Papers: Salimans et al., "PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other Modifications", 2017,
https://arxiv.org/abs/1701.05517; van den Oord et al., "Parallel WaveNet", 2018, https://arxiv.org/abs/1711.10433.

Levels 0 .. n - 1 stand for the values v = 2 level / (n - 1) - 1. With K components (weight pi, mean m, scale s) and h = 1 / (n - 1), half
the distance between two values::

    P(v) = sum_k pi_k [F((v + h - m_k) / s_k) - F((v - h - m_k) / s_k)],   F(a) = 1 / (1 + exp(-a))

where the first level reaches down to minus infinity and the last up to infinity: the probabilities of all levels sum to one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class LogisticMixture(NamedTuple):
    """Parameters of one distribution a position, (..., K) each."""

    logits: Tensor
    """log pi, up to a constant"""
    mean: Tensor
    log_scale: Tensor
    """No scale is below e^-5 of half a level, where all that is left to tell is which level it is."""

    @staticmethod
    def of(features: Tensor, levels: int) -> LogisticMixture:
        """From a head's output (..., 3 K): logits, means and logarithms of scales, one behind the other."""
        logits, mean, log_scale = features.chunk(3, -1)
        return LogisticMixture(logits, mean, log_scale.clamp(min=-math.log(levels - 1) - 5))

    def log_prob(self, level: Tensor, levels: int) -> Tensor:
        """log P of int64 levels (...)."""
        half = 1 / (levels - 1)
        value = (2 * half * level.to(self.mean.dtype) - 1).unsqueeze(-1)
        inverse = torch.exp(-self.log_scale)
        upper, lower = (value + half - self.mean) * inverse, (value - half - self.mean) * inverse
        # F(a) - F(b) = F(a) F(-b) (1 - e^(b - a)), whose factors neither cancel nor vanish in single precision
        below = torch.where((level == levels - 1).unsqueeze(-1), 0.0, F.logsigmoid(upper))
        above = torch.where((level == 0).unsqueeze(-1), 0.0, F.logsigmoid(-lower))
        inside = ((level > 0) & (level < levels - 1)).unsqueeze(-1)
        width = torch.where(inside, torch.log(-torch.expm1(-2 * half * inverse)), 0.0)
        return torch.logsumexp(self.logits.log_softmax(-1) + below + above + width, -1)

    def sample(self, noise: Tensor, levels: int, temperature: float = 1.0) -> Tensor:
        """int64 levels (...), from ``noise`` (..., 2) uniform in [0, 1): one number chooses the component, one the place in it.

        The temperature divides the logits of the components and multiplies their scales; 0 is the mean of the likeliest one.
        """
        if temperature == 0:
            chosen, quantile = self.logits.argmax(-1, keepdim=True), torch.zeros_like(noise[..., 1])
        else:
            cumulative = (self.logits.double() / temperature).softmax(-1).cumsum(-1)
            threshold = noise[..., :1].double() * cumulative[..., -1:]
            chosen = torch.searchsorted(cumulative, threshold, right=True)
            quantile = temperature * torch.logit(noise[..., 1], 1e-12)
        mean, log_scale = (t.gather(-1, chosen).squeeze(-1) for t in (self.mean, self.log_scale))
        value = mean + log_scale.exp() * quantile.to(mean.dtype)
        return ((value.clamp(-1, 1) + 1) / 2 * (levels - 1) + 0.5).long()
