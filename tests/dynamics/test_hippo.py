"""HiPPO matrices against the kernels, spectra and reconstructions that their papers promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from statescan.dynamics import discretize_dense, hippo, legs_reconstruct, low_rank, nplr, scaled_legs


def kernel(measure: str, n: int, t: float) -> torch.Tensor:
    A, B = hippo(measure, n)
    return torch.linalg.matrix_exp(t * A) @ B


def legendre(n: int, x: float) -> torch.Tensor:
    return torch.tensor([np.polynomial.legendre.Legendre.basis(k)(x) for k in range(n)], dtype=torch.float64)


@pytest.mark.parametrize("t", [0.0, 0.1, 0.7, 2.0])
def test_legs_kernels_are_warped_legendre_polynomials(t: float) -> None:
    n = 16
    r = (2 * torch.arange(n, dtype=torch.float64) + 1).sqrt()
    expected = r * legendre(n, 2 * math.exp(-t) - 1) * math.exp(-t)
    assert (kernel("legs", n, t) - expected).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("measure", "scalar"),
    [("legs", -0.5), ("legt", 0.0), ("lagt", 0.0), ("fourier", 0.0), ("fourier2", 0.0), ("fourier_decay", 0.0), ("fourier_diag", -0.5)],
)
@pytest.mark.parametrize("n", [2, 6, 16, 64])
def test_low_rank_correction_leaves_a_scalar_plus_a_skew_matrix(measure: str, scalar: float, n: int) -> None:
    A, _ = hippo(measure, n)
    P = low_rank(measure, n)
    rest = A + P.T @ P - scalar * torch.eye(n, dtype=torch.float64)
    assert (rest + rest.T).abs().max() < 1e-12 * max(1, A.abs().max())


def test_legs_spectrum_is_minus_one_to_minus_n() -> None:
    A, _ = hippo("legs", 16)
    assert torch.equal(A, A.tril())
    assert torch.equal(A.diagonal(), -torch.arange(1, 17, dtype=torch.float64))


def test_legt_is_a_window_of_length_two() -> None:
    expected = torch.tensor([0.52, 0.40, -0.10, -0.63], dtype=torch.float64)
    assert (kernel("legt", 32, 0.5)[:4] - expected).abs().max() < 0.01
    ideal = 0.5 * (2 * torch.arange(4, dtype=torch.float64) + 1).sqrt() * legendre(4, 0.5)
    assert (kernel("legt", 32, 0.5)[:4] - ideal).abs().max() < 0.06
    assert kernel("legt", 32, 2.3)[:4].abs().max() < 0.02
    assert kernel("legt", 32, 3.0).abs().max() < 0.002


def test_fourier_is_a_window_of_length_two_and_its_variants_what_they_say() -> None:
    expected = torch.tensor([0.502, 0.0, -0.005, 0.707], dtype=torch.float64)
    assert (kernel("fourier", 64, 0.5)[:4] - expected).abs().max() < 2e-3
    assert kernel("fourier", 64, 2.1)[:4].abs().max() < 0.01
    assert all(kernel("fourier", 64, t)[1].abs() < 1e-12 for t in (0.1, 0.5, 1.7))
    assert (kernel("fourier2", 64, 0.25) - 2 * kernel("fourier", 64, 0.5)).abs().max() < 1e-9  # the same basis on [0, 1]
    A, B = hippo("fourier_decay", 8)
    full, b = hippo("fourier", 8)
    assert torch.allclose(A - torch.outer(B, B) * 2, full)
    assert torch.allclose(2 * B, b)
    A, _ = hippo("fourier_diag", 8)
    frequencies = torch.linalg.eigvals(A).imag.abs().sort().values
    assert torch.allclose(frequencies, 2 * math.pi * torch.tensor([0, 0, 1, 1, 2, 2, 3, 3.0], dtype=torch.float64))


def test_lmu_is_legt_in_another_normalisation() -> None:
    n = 12
    A, B = hippo("legt", n)
    lmu_A, lmu_B = hippo("lmu", n)
    i = torch.arange(n, dtype=torch.float64)
    scale = (2 * i + 1).sqrt() * (-1) ** i  # the change of basis, and the halved form's factor two
    assert torch.allclose(2 * A * scale.unsqueeze(1) / scale, lmu_A)
    assert torch.allclose(2 * B * scale, lmu_B)


def test_lagt_bilinear_inverse_is_lower_triangular_toeplitz() -> None:
    n, delta = 12, 0.3
    A, _ = hippo("lagt", n)
    inverse = torch.linalg.inv(torch.eye(n, dtype=torch.float64) - delta / 2 * A)
    assert inverse.triu(1).abs().max() < 1e-13
    assert all((inverse.diagonal(-k) - inverse[k, 0]).abs().max() < 1e-13 for k in range(n))


def test_generalised_laguerre_limits() -> None:
    A, B = hippo("glagt", 8, alpha=0.0, beta=1.0)
    assert torch.allclose(A, -torch.ones(8, 8, dtype=torch.float64).tril())
    assert torch.allclose(B, torch.ones(8, dtype=torch.float64))
    A, _ = hippo("glagt", 8, alpha=0.0, beta=1e-9)  # beta -> 0 is lagt
    assert torch.allclose(A, hippo("lagt", 8)[0], atol=1e-8)
    A, B = hippo("glagt", 6, alpha=0.5, beta=0.2)
    plain = -0.6 * torch.eye(6, dtype=torch.float64) - torch.ones(6, 6, dtype=torch.float64).tril(-1)
    assert torch.allclose(A.diagonal(), plain.diagonal())
    # L_n^2 = Gamma(n + alpha + 1) / n!, so L_1 / L_0 = sqrt(Gamma(2.5) / Gamma(1.5)) = sqrt(1.5)
    assert A[1, 0] == pytest.approx(-1 / math.sqrt(1.5))
    assert B[1] / B[0] == pytest.approx(1.5 / math.sqrt(1.5))  # binom(1.5, 1) L_0 / L_1


@pytest.mark.parametrize("measure", ["legs", "legt", "lagt", "fourier", "fourier2", "fourier_decay", "fourier_diag"])
def test_nplr_rebuilds_the_matrix(measure: str) -> None:
    n = 16
    A, B = hippo(measure, n)
    Lambda, P, b, V = nplr(measure, n)
    full_V = torch.cat([V, V.conj()], 1)
    full_Lambda = torch.cat([Lambda, Lambda.conj()])
    full_P = torch.cat([P, P.conj()], 1)
    unitary = full_V.mH @ full_V
    assert (unitary - torch.eye(n)).abs().max() < 1e-12
    rebuilt = full_V @ (torch.diag(full_Lambda) - full_P.T @ full_P.conj()) @ full_V.mH
    assert (rebuilt - A).abs().max() < 1e-10 * A.abs().max()
    assert (2 * (V @ b).real - B).abs().max() < 1e-10 * B.abs().max()
    assert (Lambda.imag >= 0).all()
    assert b.imag.abs().max() < 1e-10
    assert (b.real >= -1e-10).all()
    assert len(Lambda) == n // 2


def test_wrong_names_and_sizes_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="did you mean 'fourier'"):
        hippo("fourie", 4)
    with pytest.raises(ValueError, match="even"):
        hippo("fourier", 5)
    with pytest.raises(ValueError, match="even"):
        nplr("legs", 5)
    with pytest.raises(ValueError, match="no low-rank correction"):
        low_rank("lmu", 4)
    with pytest.raises(ValueError, match="alpha"):
        hippo("glagt", 4, alpha=1.5)


@pytest.fixture(scope="module")
def signal() -> torch.Tensor:
    t = torch.linspace(0, 1, 1000, dtype=torch.float64)
    return torch.sin(10 * t) + 0.5 * torch.cos(23 * t)


def reconstruction_error(u: torch.Tensor, c: torch.Tensor, inside: int = 0) -> float:
    length = len(u)
    points = (torch.arange(length, dtype=torch.float64) + 0.5) / length
    error = legs_reconstruct(c, points) - u
    window = slice(inside, length - inside)
    return float(error[window].norm() / u[window].norm())


@pytest.mark.parametrize(("n", "whole"), [(16, 0.009), (32, 0.014), (64, 0.030)])
def test_scaled_legs_remembers_the_whole_past(signal: torch.Tensor, n: int, whole: float) -> None:
    c = scaled_legs(signal, n)[-1]
    assert reconstruction_error(signal, c) < whole
    assert reconstruction_error(signal, c, inside=50) < 0.0065


def test_scaled_legs_needs_its_matrix(signal: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = -torch.rand(16, 16, generator=generator, dtype=torch.float64).tril() * 4
    assert reconstruction_error(signal, scaled_legs(signal, 16, A=noise)[-1]) > 0.3


def test_scaled_legs_by_zoh_is_exact_for_a_held_input(signal: torch.Tensor) -> None:
    """Projecting a piecewise constant function needs no approximation but the first step's."""
    n, length = 8, 40
    c = scaled_legs(signal[:length], n, "zoh")
    edges = torch.arange(length + 1, dtype=torch.float64) / length
    r = (2 * torch.arange(n, dtype=torch.float64) + 1).sqrt()
    basis = [np.polynomial.legendre.Legendre.basis(k, domain=[0, 1]).integ() for k in range(n)]
    exact = torch.stack([r[k] * (signal[:length] * torch.tensor(basis[k](edges.numpy())).diff()).sum() for k in range(n)])
    assert (c[-1] - exact).abs().max() < 1e-12


def test_scaled_legs_takes_batches(signal: torch.Tensor) -> None:
    both = scaled_legs(torch.stack([signal[:20], 2 * signal[:20]]), 4)
    assert both.shape == (2, 20, 4)
    assert torch.allclose(both[1], 2 * both[0])


def test_dense_discretisation_of_a_singular_matrix() -> None:
    A, B = hippo("fourier", 6)  # state 1 never moves
    Abar, Bbar = discretize_dense(A, B, 0.1, "zoh")
    steps = 4000
    fine = torch.zeros(6, dtype=torch.float64)
    for _ in range(steps):  # midpoint rule with the input held at one
        half = fine + 0.05 / steps * (A @ fine + B)
        fine = fine + 0.1 / steps * (A @ half + B)
    assert (Bbar - fine).abs().max() < 1e-8
    assert (Abar - torch.linalg.matrix_exp(0.1 * A)).abs().max() < 1e-14
