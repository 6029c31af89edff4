"""The step size of selective mixers: its bias lives in float32 and starts so that steps are log-uniform in [dt_min, dt_max]."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.layers.linear import is_watched
from statescan.ops.checks import state_dtype
from statescan.ops.products import linear
from statescan.parameters import Dynamic


def init_delta_bias(shape: tuple[int, ...], dt_min: float, dt_max: float, floor: float) -> Tensor:
    """softplus^-1 of log-uniform steps in [dt_min, dt_max], clamped below at ``floor``."""
    if not 0 < dt_min <= dt_max:
        raise ValueError(f"expected 0 < dt_min <= dt_max; got dt_min={dt_min}, dt_max={dt_max}")
    delta = torch.exp(torch.rand(shape) * (math.log(dt_max) - math.log(dt_min)) + math.log(dt_min)).clamp(min=floor)
    return delta + torch.log(-torch.expm1(-delta))


class DeltaProjection(nn.Linear, Dynamic):
    """Low-rank to width: a Linear whose bias is added in float32, so that small steps survive bfloat16 weights and autocast."""

    dynamics = ("bias",)

    def forward(self, input: Tensor) -> Tensor:
        if self.bias is None or (input.dtype == self.weight.dtype == self.bias.dtype and not _autocast(input)):
            return linear(input, self.weight, self.bias)
        product = F.linear(input, self.weight)
        return product + self.bias.to(state_dtype(product))  # which widens the product on its way


def _autocast(x: Tensor) -> bool:
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # the meta device knows no autocast


class RawSteps(NamedTuple):
    """Arguments of :func:`~statescan.ops.selective_scan`, before softplus."""

    delta: Tensor
    """(B, L, R) with a weight, else (B, L, E)"""
    weight: Tensor | None
    """(E, R)"""
    bias: Tensor | None
    """(E,)"""


def raw_steps(projection: nn.Module, r: Tensor) -> RawSteps:
    """What ``projection(r)`` gives: its factors where nothing could tell, for the scan multiplies faster, else its output."""
    if type(projection) is DeltaProjection and not is_watched(projection) and not _autocast(r):
        weight, bias = projection.weight, projection.bias
        if type(weight) in (Tensor, nn.Parameter) and weight.dtype == r.dtype:
            return RawSteps(r, weight, bias)
    return RawSteps(projection(r), None, None)
