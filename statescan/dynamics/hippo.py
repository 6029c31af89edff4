"""HiPPO: pairs (A, B) such that x' = A x + B u keeps the coefficients of u's history on an orthogonal basis.

Papers: Gu et al., "HiPPO: Recurrent Memory with Optimal Polynomial Projections", 2020, https://arxiv.org/abs/2008.07669;
Gu et al., "How to Train Your HiPPO", 2022, https://arxiv.org/abs/2206.12037.

Seen as a convolution, state n filters the input with the kernel K_n(t) = e_n^T exp(tA) B. Indices n, k = 0..N-1; r_n = sqrt(2n + 1).
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from statescan.registry import nearest

Measure = Literal["legs", "legt", "lmu", "lagt", "glagt", "fourier", "fourier2", "fourier_decay", "fourier_diag"]

_F64: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}


def hippo(measure: Measure, n: int, *, alpha: float = 0.0, beta: float | None = None) -> tuple[Tensor, Tensor]:
    """A (N, N) and B (N,) in float64.

    - ``legs``: A_nk = -r_n r_k (n > k), -(n+1) (n = k), 0 else; B = r. K_n(t) = r_n P_n(2e^-t - 1) e^-t, P_n Legendre's polynomials.
    - ``legt``: A_nk = -r_n r_k / 2 times (1 if n >= k else (-1)^(n-k)), B = r/2. A window of length 2: K_n(t) ~ r_n P_n(1-t) / 2 inside,
      about 0 outside. Twice A and B give the window of length 1.
    - ``lmu``: legt for a window of length 1 in another normalisation; divide both by the wanted length.
    - ``lagt``: A = I/2 - tril(1), B = beta (default 1).
    - ``glagt``: generalised Laguerre with ``alpha`` < 1 and ``beta`` (default 0.01), normalised.
    - ``fourier``: skew blocks of frequency pi m minus B B^T, B = (1, 0, sqrt2, 0, ...): the basis 1, (0), sqrt2 cos(pi m t),
      sqrt2 sin(pi m t) on a window of length 2, times 1/2. State 1 is identically zero.
    - ``fourier2``: twice that A and B: the window of length 1. ``fourier_decay``: half the rank correction, half B: no window, decay.
      ``fourier_diag``: blocks of frequency 2 pi m minus I/2.
    """
    if n < 1:
        raise ValueError(f"a HiPPO matrix needs at least one state; got n={n}")
    if measure.startswith("fourier") and n % 2:
        raise ValueError(f"the Fourier basis pairs its states: n must be even; got {n}")
    i = torch.arange(n, **_F64)
    r = (2 * i + 1).sqrt()
    row, col = i.unsqueeze(1), i.unsqueeze(0)
    sign = 1.0 - 2.0 * ((row - col) % 2)  # (-1)^(row - col)
    if measure == "legs":
        return -torch.tril(torch.outer(r, r), -1) - torch.diag(i + 1), r
    if measure == "legt":
        return -0.5 * torch.outer(r, r) * torch.where(row >= col, 1.0, sign), 0.5 * r
    if measure == "lmu":
        return (2 * row + 1) * torch.where(row < col, -1.0, -sign), (1.0 - 2.0 * (i % 2)) * (2 * i + 1)
    if measure == "lagt":
        ones = torch.ones(n, n, **_F64)
        return 0.5 * torch.eye(n, **_F64) - torch.tril(ones), torch.full((n,), 1.0 if beta is None else beta, **_F64)
    if measure == "glagt":
        return _generalised_laguerre(i, alpha, 0.01 if beta is None else beta)
    if measure in ("fourier", "fourier2", "fourier_decay", "fourier_diag"):
        return _fourier(measure, n)
    raise ValueError(f"there is no HiPPO measure {measure!r}{nearest(measure, get_args(Measure))}")


def _generalised_laguerre(i: Tensor, alpha: float, beta: float) -> tuple[Tensor, Tensor]:
    if not (-1 < alpha < 1 and beta > 0):
        raise ValueError(f"glagt needs -1 < alpha < 1 and beta > 0; got alpha={alpha}, beta={beta}")
    n = len(i)
    A = -(1 + beta) / 2 * torch.eye(n, **_F64) - torch.tril(torch.ones(n, n, **_F64), -1)
    binomial = torch.exp(torch.lgamma(alpha + i + 1) - torch.lgamma(i + 1) - math.lgamma(alpha + 1))
    norm = torch.exp(0.5 * (torch.lgamma(i + alpha + 1) - torch.lgamma(i + 1)))
    scale = math.exp(-0.5 * math.lgamma(1 - alpha)) * beta ** ((1 - alpha) / 2)
    return A * norm / norm.unsqueeze(1), binomial / norm * scale


def _fourier(measure: str, n: int) -> tuple[Tensor, Tensor]:
    frequency = torch.arange(n // 2, **_F64)
    off = torch.stack([frequency, torch.zeros_like(frequency)], 1).reshape(-1)[:-1]
    skew = math.pi * (torch.diag(off, -1) - torch.diag(off, 1))
    b = torch.zeros(n, **_F64)
    b[0::2] = math.sqrt(2)
    b[0] = 1.0
    outer = torch.outer(b, b)
    if measure == "fourier":
        return skew - outer, b
    if measure == "fourier2":
        return 2 * (skew - outer), 2 * b
    if measure == "fourier_decay":
        return skew - 0.5 * outer, 0.5 * b
    return 2 * skew - 0.5 * torch.eye(n, **_F64), b


def low_rank(measure: Measure, n: int) -> Tensor:
    """P (R, N) such that A + sum_r P_r P_r^T is a multiple of the identity plus a skew-symmetric matrix. R is 0, 1 or 2.

    ``lmu`` and ``glagt`` have none in these coordinates.
    """
    i = torch.arange(n, **_F64)
    if measure == "legs":
        return (i + 0.5).sqrt().unsqueeze(0)
    if measure == "legt":
        p = (i + 0.5).sqrt()
        return torch.stack([torch.where(i % 2 == 0, 0.0, p), torch.where(i % 2 == 0, p, 0.0)])
    if measure == "lagt":
        return torch.full((1, n), math.sqrt(0.5), **_F64)
    if measure in ("fourier", "fourier2", "fourier_decay"):
        b = _fourier("fourier", n)[1]
        return (b * {"fourier": 1.0, "fourier2": math.sqrt(2), "fourier_decay": math.sqrt(0.5)}[measure]).unsqueeze(0)
    if measure == "fourier_diag":
        return torch.zeros(0, n, **_F64)
    raise ValueError(f"no low-rank correction makes {measure!r} normal; there is one for legs, legt, lagt and the fourier measures")


class NPLR(NamedTuple):
    """A normal-plus-low-rank form: A = V_full diag(Lambda_full) V_full^H - sum_r P_r P_r^H, with V_full = [V, conj(V)], all complex128.

    One of each pair of conjugate eigenvalues is kept: the one with positive imaginary part. Phases are chosen so that V^H B is real and
    not negative.
    """

    Lambda: Tensor
    """(N/2,), imaginary parts ascending."""
    P: Tensor
    """V^H P: (R, N/2)"""
    B: Tensor
    """V^H B: (N/2,)"""
    V: Tensor
    """(N, N/2)"""


def nplr(measure: Measure, n: int) -> NPLR:
    """Diagonalise A + P P^T, which is scalar plus skew, by ``eigh`` of -i times its skew part (``eig`` would lose all digits)."""
    if n % 2:
        raise ValueError(f"eigenvalues come in conjugate pairs: n must be even; got {n}")
    A, B = hippo(measure, n)
    P = low_rank(measure, n)
    normal = A + P.T @ P
    scalar = normal.diagonal().mean()
    skew = normal - scalar * torch.eye(n, **_F64)
    if float((skew + skew.T).abs().max()) > 1e-9 * float(normal.abs().max()):
        raise ValueError(f"{measure} with its low-rank correction is not scalar plus skew")
    frequency, vectors = torch.linalg.eigh(-1j * skew)
    zero = frequency.abs() < 1e-9 * frequency.abs().max()
    keep = frequency > 0
    Lambda, V = frequency[keep & ~zero], vectors[:, keep & ~zero]
    if bool(zero.any()):
        null_frequency, null_vectors = _null_pairs(vectors[:, zero])
        Lambda, V = torch.cat([null_frequency, Lambda]), torch.cat([null_vectors, V], 1)
    V = _real_inputs(V, B)
    return NPLR(torch.complex(scalar.expand(len(Lambda)), Lambda), P.to(V) @ V.conj(), V.mH @ B.to(V), V)


def _null_pairs(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Conjugate pairs that span a real matrix's null space, whose orthonormal basis ``eigh`` gives in no particular form (Fourier)."""
    projector = (vectors @ vectors.mH).real
    real = torch.linalg.eigh(projector).eigenvectors[:, -vectors.shape[1] :]
    pairs = torch.complex(real[:, 0::2], real[:, 1::2]) / math.sqrt(2)
    return torch.zeros(pairs.shape[1], **_F64), pairs


def _real_inputs(V: Tensor, B: Tensor) -> Tensor:
    """Turn each eigenvector's free phase so that V^H B is real and positive."""
    inner = V.mH @ B.to(V)
    size = inner.abs()
    phase = torch.where(size > 1e-12, inner / size.clamp(min=1e-12), 1.0)
    return V * phase
