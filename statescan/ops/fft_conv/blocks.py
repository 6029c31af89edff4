"""The Fourier transform by products with small matrices, which a layer may learn.

A transform of N = m n points: n transforms of m points, a factor for each of their results, and m transforms of n points (Cooley and
Tukey). It is how FlashConv (Fu et al., 2022, https://arxiv.org/abs/2212.14052) feeds units that multiply matrices; on a CPU ``torch.fft``
is faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

LARGEST = 16
"""Rows of the largest matrix."""


def dft_matrix(n: int, like: Tensor) -> Tensor:
    """exp(-2 pi i j k / n), (n, n), of the complex dtype and on the device of ``like``."""
    at = torch.arange(n, device=like.device)
    return _unit(torch.outer(at, at) % n, n, like)


def matrix_sizes(length: int, largest: int = LARGEST) -> tuple[int, ...]:
    """Rows of the matrices in a transform of ``length`` points, a power of two: 64 -> (16, 4)."""
    if length < 2 or length & (length - 1) or largest < 2 or largest & (largest - 1):
        raise ValueError(f"the length of a transform and its largest matrix must be powers of two, at least 2; got {length} and {largest}")
    sizes = []
    while length > largest:
        sizes.append(largest)
        length //= largest
    return (*sizes, length)


def block_fft(x: Tensor, matrix: Callable[[int, Tensor], Tensor] = dft_matrix, largest: int = LARGEST) -> Tensor:
    """Transform the last axis of x (..., D, N), complex, N a power of two, by products with matrices of at most ``largest`` rows.

    ``matrix(n, x)`` gives the one of n rows: (n, n), or (D, n, n) with one for each of D rows of x.
    """
    sizes = matrix_sizes(x.shape[-1], largest)
    return _transform(x.unsqueeze(-2), sizes, matrix).squeeze(-2)


def _transform(x: Tensor, sizes: tuple[int, ...], matrix: Callable[[int, Tensor], Tensor]) -> Tensor:
    """x (..., D, R, N): R transforms beside each other."""
    m = sizes[0]
    square = matrix(m, x)
    if len(sizes) == 1:
        return x @ square.mT
    n = math.prod(sizes[1:])
    columns = square.unsqueeze(-3) @ x.unflatten(-1, (m, n))
    twiddle = _unit(torch.outer(torch.arange(m, device=x.device), torch.arange(n, device=x.device)), m * n, x)
    rows = _transform((columns * twiddle).flatten(-3, -2), sizes[1:], matrix)
    return rows.unflatten(-2, (-1, m)).mT.flatten(-2)


def _unit(turns: Tensor, n: int, like: Tensor) -> Tensor:
    """exp(-2 pi i turns / n), made in the widest precision of the device."""
    wide = torch.float32 if like.device.type == "mps" else torch.float64
    angle = turns.to(wide) * (-2 * math.pi / n)
    return torch.complex(angle.cos(), angle.sin()).to(like.dtype)
