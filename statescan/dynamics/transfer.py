"""Transfer functions: how a linear time-invariant system answers exp(i omega t)."""

from __future__ import annotations

import torch
from torch import Tensor


def dense_transfer(A: Tensor, B: Tensor, C: Tensor, omega: Tensor) -> Tensor:
    """C (i omega - A)^-1 B of a continuous system: A (N, N), B (N,), C (N,), omega (W,) -> (W,), complex128."""
    A, B, C = (t.to(torch.complex128) for t in (A, B, C))
    shifted = 1j * omega[:, None, None] * torch.eye(len(A), dtype=A.dtype) - A
    return torch.linalg.solve(shifted, B.expand(len(omega), -1)) @ C


def modal_transfer(Lambda: Tensor, B: Tensor, C: Tensor, omega: Tensor) -> Tensor:
    """The same from modes (..., M), one of each conjugate pair: sum C B / (i omega - Lambda) over them and their conjugates, (..., W)."""
    s, weight = 1j * omega.to(torch.float64), (C * B).unsqueeze(-1)
    Lambda = Lambda.unsqueeze(-1)
    return (weight / (s - Lambda) + weight.conj() / (s - Lambda.conj())).sum(-2)


def kernel_transfer(kernel: Tensor, omega: Tensor) -> Tensor:
    """sum_l K_l exp(-i omega l) of a convolution kernel (..., L), such as any layer's ``kernel(length)``; omega in radians a position."""
    angle = omega.to(torch.float64).unsqueeze(-1) * torch.arange(kernel.shape[-1], dtype=torch.float64)
    return kernel.to(torch.complex128) @ torch.polar(torch.ones_like(angle), -angle).mT


def generating_function(c: Tensor, d: Tensor, p: Tensor, q: Tensor, b: Tensor, w: Tensor) -> Tensor:
    """sum_l K_l w^l of the systems of :func:`statescan.ops.dplr_kernel`, by Cauchy sums and Woodbury's identity: (D, W), complex128.

    S4 (https://arxiv.org/abs/2111.00396) evaluates it at the roots of unity. With s(v) = sum_n v_n / (1 - w d_n) over the modes and their
    conjugates it is s(c b) - w s(c p) (1 + w s(q p))^-1 s(q b). In terms of the discrete d no w on or inside the unit circle is singular;
    in terms of the continuous eigenvalues w = -1 is, with the limit delta sum B C / 2.

    Args:
        c, d, b: (D, M), one mode of each conjugate pair.
        p, q: (D, R, M).
        w: (W,), |w| <= 1.
    """
    c, d, p, q, b, w = (t.to(torch.complex128) for t in (c, d, p, q, b, w))
    below, mirrored = (1 / (1 - w * poles.unsqueeze(-1)) for poles in (d, d.conj()))
    left = torch.cat([c.unsqueeze(1), q], 1).unsqueeze(2)
    right = torch.cat([b.unsqueeze(1), p], 1).unsqueeze(1)
    v = left * right / 2  # Re z = (z + conj z) / 2
    s = torch.einsum("dijm,dmw->dwij", v, below) + torch.einsum("dijm,dmw->dwij", v.conj(), mirrored)
    one = torch.eye(p.shape[1], dtype=s.dtype)
    w = w[:, None, None]
    return (s[..., :1, :1] - w * s[..., :1, 1:] @ torch.linalg.solve(one + w * s[..., 1:, 1:], s[..., 1:, :1])).flatten(1)
