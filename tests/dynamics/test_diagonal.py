"""Diagonal initialisers, transforms and discretisations: the table's values, and what each method promises."""

from __future__ import annotations

import math

import pytest
import torch

from statescan.dynamics import (
    apply_transform,
    diagonal_init,
    discretize_dense,
    discretize_diagonal,
    hippo,
    input_init,
    invert_transform,
    log_uniform,
    phi1,
)

INITS = ["legs", "lin", "inv", "inv2", "quad", "real", "rand"]


@pytest.mark.parametrize("init", INITS)
def test_initial_values_are_stable_halves(init: str) -> None:
    A = diagonal_init(init, 8, copies=3)
    assert A.shape == (3, 4)
    assert A.dtype == torch.complex128
    assert (A.real < 0).all()
    assert (A.imag >= 0).all()
    assert torch.equal(A[0], A[1]) == (init != "rand")


def test_the_table_of_initial_values() -> None:
    def imag(init: str) -> list[float]:
        return diagonal_init(init, 4)[0].imag.tolist()

    assert imag("lin") == pytest.approx([0, math.pi])
    assert imag("inv") == pytest.approx([4 / math.pi * 3, 4 / math.pi * (4 / 3 - 1)])
    assert imag("inv2") == pytest.approx([4 / math.pi * 3, 4 / math.pi * 1])
    assert imag("quad") == pytest.approx([1 / math.pi, 9 / math.pi])
    assert diagonal_init("real", 6)[0].tolist() == [-1, -2, -3]
    assert (diagonal_init("lin", 64).real == -0.5).all()
    assert (diagonal_init("legs", 64).real + 0.5).abs().max() < 1e-12
    torch.manual_seed(0)
    random = diagonal_init("lin", 64, real_random=True)
    assert 0 < -random.real.max() < -random.real.min() < 1
    assert -diagonal_init("real", 64, real_random=True).real.min() > 2


def test_inverse_law_approximates_the_legs_spectrum() -> None:
    legs = diagonal_init("legs", 64)[0].imag.sort(descending=True).values[:3]
    inv = diagonal_init("inv", 64)[0].imag.sort(descending=True).values[:3]
    assert legs.tolist() == pytest.approx([1303.3, 433.0, 258.2], abs=0.1)
    assert inv.tolist() == pytest.approx([1283.4, 414.2, 240.4], abs=0.1)


def test_input_vectors() -> None:
    assert torch.equal(input_init("constant", 8, 2), torch.ones(2, 4, dtype=torch.complex128))
    assert input_init("alternating", 8)[0].real.tolist() == [1, -1, 1, -1]
    clockwise, counter = input_init("unit_cw", 8), input_init("unit_ccw", 8)
    assert torch.allclose(clockwise, counter.conj())
    assert torch.allclose(counter[0, 1], torch.tensor(complex(math.sqrt(0.5), math.sqrt(0.5)), dtype=torch.complex128))
    torch.manual_seed(0)
    random = input_init("random", 256, 64)
    assert random.abs().square().mean() == pytest.approx(1, abs=0.05)
    B = hippo("legs", 16)[1]
    assert 2 * (2 * input_init("legs", 16)).abs().square().sum() == pytest.approx(float(B.square().sum()))  # V is unitary


@pytest.mark.parametrize(("n", "bound"), [(64, 2e-3), (256, 6e-5), (1024, 3e-6)])
def test_s4d_legs_answers_smooth_inputs_as_legs_does_though_its_kernel_does_not_converge(n: int, bound: float) -> None:
    """State 0 of LegS is exactly y' = -y + u; S4D-LegS reads it out as V^H e_0. Input sin 2t on [0, 5]."""
    from statescan.dynamics import nplr

    form = nplr("legs", n)
    readout, b = form.V[0], form.B / 2
    t = torch.linspace(0, 5, 501, dtype=torch.float64).to(torch.complex128)
    # the exact response of each mode a to sin 2t: b times the integral of exp(a (t - s)) sin 2s
    a = form.Lambda.unsqueeze(1)
    response = (2 * torch.exp(a * t) - 2 * torch.cos(2 * t) - a * torch.sin(2 * t)) / (a * a + 4)
    diagonal = 2 * (readout.unsqueeze(1) * b.unsqueeze(1) * response).sum(0).real
    exact = ((2 * torch.exp(-t) - 2 * torch.cos(2 * t) + torch.sin(2 * t)) / 5).real
    assert (diagonal - exact).abs().max() < bound
    kernel = 2 * (readout.unsqueeze(1) * b.unsqueeze(1) * torch.exp(a * t)).sum(0).real
    assert (kernel - torch.exp(-t).real).abs().max() > 0.3


@pytest.mark.parametrize("transform", ["exp", "softplus", "relu", "sigmoid", "none"])
def test_transforms_invert(transform: str) -> None:
    value = torch.tensor([0.01, 0.5, 0.999] if transform == "sigmoid" else [0.01, 0.5, 40.0], dtype=torch.float64)
    raw = invert_transform(value, transform)
    assert torch.allclose(apply_transform(raw, transform), value, rtol=1e-12)
    if transform != "none":
        assert (apply_transform(torch.linspace(-5, 5, 11, dtype=torch.float64), transform) > 0).all()


def test_transforms_refuse_what_they_cannot_reach() -> None:
    with pytest.raises(ValueError, match="between 0"):
        invert_transform(torch.tensor([0.0]), "exp")
    with pytest.raises(ValueError, match=r"1\.0 only"):
        invert_transform(torch.tensor([1.5]), "sigmoid")
    with pytest.raises(ValueError, match="did you mean 'softplus'"):
        apply_transform(torch.zeros(1), "soft")


def test_log_uniform_steps() -> None:
    torch.manual_seed(0)
    delta = log_uniform((4000,), 1e-3, 1e-1)
    assert 1e-3 <= delta.min() < 1.1e-3
    assert 0.09 < delta.max() <= 0.1
    assert float((delta < 1e-2).double().mean()) == pytest.approx(0.5, abs=0.03)
    with pytest.raises(ValueError, match="dt_min"):
        log_uniform((3,), 0.1, 0.01)


@pytest.mark.parametrize("method", ["zoh", "bilinear", "forward", "backward", "gbt"])
def test_diagonal_equals_dense_in_the_eigenbasis(method: str) -> None:
    A = torch.tensor([[-0.5, 2.0], [-2.0, -0.5]], dtype=torch.float64)
    B = torch.tensor([1.0, 0.3], dtype=torch.float64)
    alpha = 0.3 if method == "gbt" else None
    Abar, Bbar = discretize_dense(A, B, 0.2, method, alpha=alpha)
    V = torch.tensor([1, 1j], dtype=torch.complex128) / math.sqrt(2)  # A V = (-0.5 + 2i) V
    log_decay, bbar = discretize_diagonal(
        torch.tensor(-0.5 + 2j, dtype=torch.complex128), V.conj() @ B.to(V), torch.tensor(0.2, dtype=torch.float64), method, alpha=alpha
    )
    assert (2 * (torch.outer(V, V.conj()) * log_decay.exp()).real - Abar).abs().max() < 1e-14
    assert (2 * (V * bbar).real - Bbar).abs().max() < 1e-14


@pytest.mark.parametrize(("method", "order"), [("forward", 1), ("backward", 1), ("bilinear", 2)])
def test_order_of_the_discretisations(method: str, order: int) -> None:
    A, B = hippo("legs", 4)

    def error(delta: float) -> float:
        Abar, _ = discretize_dense(A, B, delta, method)
        return float((torch.linalg.matrix_power(Abar, round(1 / delta)) - torch.linalg.matrix_exp(A)).abs().max())

    assert math.log2(error(1 / 256) / error(1 / 512)) == pytest.approx(order, abs=0.1)


def test_dss_rows_are_a_softmax_over_positions_divided_by_the_eigenvalue() -> None:
    torch.manual_seed(0)
    length = 17
    A = torch.complex(-torch.rand(5, dtype=torch.float64), 3 * torch.randn(5, dtype=torch.float64))
    A[0] = A[0].conj() * -1  # a growing mode
    delta = torch.tensor(0.1, dtype=torch.float64)
    log_decay, Bbar = discretize_diagonal(A, torch.ones_like(A), delta, "dss", length=length)
    positions = torch.arange(length, dtype=torch.float64)
    kernel = Bbar.unsqueeze(1) * torch.exp(log_decay.unsqueeze(1) * positions)
    powers = torch.exp((delta * A).unsqueeze(1) * positions)
    expected = powers / powers.sum(1, keepdim=True) / A.unsqueeze(1)
    assert (kernel - expected).abs().max() < 1e-13
    with pytest.raises(ValueError, match="length"):
        discretize_diagonal(A, A, delta, "dss")


def test_phi1_keeps_its_precision_and_its_gradient_at_zero() -> None:
    z = torch.tensor([0, 1e-12, 1e-9j, 1e-6 + 1e-6j, -0.5 + 3j], dtype=torch.complex128, requires_grad=True)
    series = sum(z.detach() ** k / float(math.factorial(k + 1)) for k in range(40))
    assert (phi1(z) - series).abs().max() < 1e-15
    phi1(z).real.sum().backward()
    assert z.grad is not None
    assert (z.grad[:4] - 0.5).abs().max() < 1e-6
    assert torch.isfinite(torch.view_as_real(z.grad)).all()


def test_gate_is_a_discretisation() -> None:
    """A = -1, B = 1: backward Euler with delta = exp(z), and zoh with delta = softplus(z), both give the gate sigmoid(z)."""
    z = torch.linspace(-3, 3, 7, dtype=torch.float64)
    A, B = -torch.ones_like(z), torch.ones_like(z)
    for method, delta in (("backward", z.exp()), ("zoh", apply_transform(z, "softplus"))):
        log_decay, Bbar = discretize_diagonal(A, B, delta, method)
        assert torch.allclose(log_decay.exp(), 1 - z.sigmoid(), rtol=1e-13)
        assert torch.allclose(Bbar, z.sigmoid(), rtol=1e-13)
