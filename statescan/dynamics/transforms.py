"""Maps that keep a parameter positive, their inverses, and the initial step sizes."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.registry import nearest

Transform = Literal["exp", "softplus", "relu", "sigmoid", "none"]

RELU_FLOOR = 1e-4


def apply_transform(raw: Tensor, transform: Transform) -> Tensor:
    """From the stored value to the positive one: exp, softplus, relu(.) + 1e-4, sigmoid, or as it is (which may blow a recurrence up)."""
    if transform == "exp":
        return raw.exp()
    if transform == "softplus":
        # log(1 + e^raw) through logaddexp: F.softplus returns its argument above a threshold, which costs digits in float64
        return torch.logaddexp(raw, torch.zeros_like(raw))
    if transform == "relu":
        return F.relu(raw) + RELU_FLOOR
    if transform == "sigmoid":
        return raw.sigmoid()
    if transform == "none":
        return raw
    raise ValueError(f"there is no transform {transform!r}{nearest(transform, get_args(Transform))}")


def invert_transform(value: Tensor, transform: Transform) -> Tensor:
    """The stored value of a positive one; a ValueError where the transform cannot reach it."""
    low, high = {"relu": (RELU_FLOOR, math.inf), "sigmoid": (0.0, 1.0), "none": (-math.inf, math.inf)}.get(transform, (0.0, math.inf))
    open_ended = transform not in ("relu", "none")
    if bool(((value <= low) if open_ended else (value < low)).any()) or bool((value >= high).any()):
        raise ValueError(f"{transform} reaches values between {low} and {high} only; the initial ones span [{value.min()}, {value.max()}]")
    if transform == "exp":
        return value.log()
    if transform == "softplus":
        return value + torch.log(-torch.expm1(-value))
    if transform == "relu":
        return value - RELU_FLOOR
    if transform == "sigmoid":
        return value.logit()
    return value.clone()


def log_uniform(shape: tuple[int, ...], low: float, high: float) -> Tensor:
    """Log-uniform in [low, high], float64: initial steps, whose inverses are the timescales 1/delta that the layer sees."""
    if not 0 < low <= high:
        raise ValueError(f"expected 0 < dt_min <= dt_max; got dt_min={low}, dt_max={high}")
    return torch.exp(torch.rand(shape, dtype=torch.float64, device="cpu") * (math.log(high) - math.log(low)) + math.log(low))
