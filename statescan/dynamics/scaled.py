"""Time-varying LegS: a uniform memory of the whole past, x' = (A x + B u) / t."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from statescan.dynamics.discretize import discretize_dense
from statescan.dynamics.hippo import hippo


def scaled_legs(
    u: Tensor, n: int, method: Literal["bilinear", "forward", "backward", "zoh"] = "bilinear", *, A: Tensor | None = None
) -> Tensor:
    """u (..., L) -> coefficients (..., L, N), float64: after each sample, those of everything so far on the scaled Legendre basis.

    Sample k = 2, 3, ... takes a step of size 1/k (``zoh``: log(k/(k-1)), the exact flow with the input held); the first one sets
    c = (u_1, 0, 0, ...). ``A`` replaces the LegS matrix (a test's control).
    """
    legs, B = hippo("legs", n)
    A = legs if A is None else A
    u = u.to(dtype=torch.float64, device=A.device)
    c = torch.cat([u[..., :1], u.new_zeros(*u.shape[:-1], n - 1)], -1)
    steps = [c]
    for k in range(2, u.shape[-1] + 1):
        delta = math.log(k / (k - 1)) if method == "zoh" else 1 / k
        Abar, Bbar = discretize_dense(A, B, delta, method)
        c = c @ Abar.T + u[..., k - 1 : k] * Bbar
        steps.append(c)
    return torch.stack(steps, -2)


def legs_reconstruct(c: Tensor, points: Tensor) -> Tensor:
    """Coefficients (..., N) at time t and points s/t in [0, 1] (T,) -> sum_n c_n r_n P_n(2 s/t - 1), (..., T)."""
    n = c.shape[-1]
    x = 2 * points.to(c) - 1
    basis = [torch.ones_like(x), x]
    for k in range(1, n - 1):
        basis.append(((2 * k + 1) * x * basis[-1] - k * basis[-2]) / (k + 1))
    r = (2 * torch.arange(n, dtype=c.dtype, device=c.device) + 1).sqrt()
    return (c * r) @ torch.stack(basis[:n])
