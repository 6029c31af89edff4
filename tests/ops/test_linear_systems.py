"""The ops of systems that are more than a diagonal: every implementation against the reference, values, states and gradients by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from statescan.dynamics import discretize_dense, discretize_dplr, generating_function
from statescan.ops.case import Case
from statescan.ops.dispatch import implementation
from statescan.ops.dplr_kernel import cases as dplr_cases
from statescan.ops.dplr_kernel import dplr_kernel
from statescan.ops.dplr_kernel import op as dplr_op
from statescan.ops.linear_system import cases as system_cases
from statescan.ops.linear_system import linear_system
from statescan.ops.linear_system import op as system_op
from statescan.ops.vandermonde import vandermonde
from statescan.testing.laws import poisoned_memory

KERNELS = [name for name in ("portable", "native") if name in dplr_op.implementations]


def close(name: str, got: Tensor, expected: Tensor, tolerance: float) -> None:
    if expected.numel():
        error = float((got - expected).detach().abs().max() / expected.detach().abs().max().clamp(min=1))
        assert error <= tolerance, f"{name}: {error}"


@pytest.mark.parametrize("run", KERNELS)
@pytest.mark.parametrize("name", dplr_cases.SHAPES)
def test_dplr_kernel(name: str, run: str) -> None:
    *tensors, length = dplr_cases.make(name)
    leaves = [t.clone().requires_grad_() for t in tensors]
    weights = torch.randn(len(leaves[0]), length, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    results = []
    for chosen in ("reference", run):
        with implementation(chosen), poisoned_memory():
            kernel = dplr_kernel(*leaves, length)
            results.append([kernel, *torch.autograd.grad(kernel, leaves, weights, materialize_grads=True)])
    for field, expected, got in zip("Kcdpqb", *results, strict=True):
        close(field, got, expected, 1e-11 if length < 2000 else dplr_op.tolerance[torch.float64])


def test_dplr_portable_compiles_once_for_every_length_and_has_every_derivative() -> None:
    torch._dynamo.reset()
    *tensors, _ = dplr_cases.make("rank two")
    compiled = torch.compile(dplr_kernel, backend="aot_eager", fullgraph=True, dynamic=True)
    leaves = [t.clone().requires_grad_() for t in tensors]
    with implementation("portable"):
        for length in (131, 70, 37):
            with torch._dynamo.config.patch(error_on_recompile=length != 131):
                results = [
                    [k, *torch.autograd.grad(k.sin().sum(), leaves)] for k in (run(*leaves, length) for run in (compiled, dplr_kernel))
                ]
            for field, got, expected in zip("Kcdpqb", *results, strict=True):
                close(field, got, expected, 1e-12)

        def of(scale: Tensor) -> Tensor:
            return dplr_kernel(tensors[0], tensors[1] * scale, *tensors[2:], 9).sin().sum()

        scale = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(of(scale), scale, create_graph=True)
        (bend,) = torch.autograd.grad(slope, scale)
        functional = torch.func.grad(of)(scale.detach()), torch.func.hessian(of)(scale.detach())
    with implementation("reference"):
        (expected,) = torch.autograd.grad(of(scale), scale, create_graph=True)
        (second,) = torch.autograd.grad(expected, scale)
    for field, got, right in zip("12fh", (slope, bend, *functional), (expected, second, expected, second), strict=True):
        close(field, got, right, 1e-11)


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that any operation gives."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        parts = [part for part in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(part, Tensor)]
        self.size = max(self.size, *(part.numel() * (2 if part.is_complex() else 1) for part in parts), 0)
        return out


def test_portable_kernels_hold_no_tensor_of_width_modes_and_length() -> None:
    """Forward and backward at 64 channels, 32 modes and 1024 positions: nothing is larger than the kernel or a block."""
    width, modes, length = 64, 32, 1024
    g = torch.Generator().manual_seed(0)
    c, b = (torch.complex(*torch.randn(2, width, modes, dtype=torch.float64, generator=g)) for _ in range(2))
    z = torch.complex(
        -torch.rand(width, modes, dtype=torch.float64, generator=g), torch.rand(width, modes, dtype=torch.float64, generator=g)
    )
    p = b.unsqueeze(1) / 100
    for run in (lambda c, z: vandermonde(c, z, length), lambda c, z: dplr_kernel(c, z.exp(), p, p.conj(), b, length)):
        leaves = [t.clone().requires_grad_() for t in (c, z)]
        with implementation("portable"), Largest() as largest:
            torch.autograd.grad(run(*leaves).sum(), leaves)
        assert width * length <= largest.size <= width * modes * length / 8


def test_dplr_reference_is_powers_of_the_dense_bilinear_matrix() -> None:
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.complex(*(torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2)))

    Lambda, P, B, C = torch.complex(-normal(3).real.abs(), 4 * normal(3).real), normal(2, 3), normal(3), normal(3)
    both = [torch.cat([t, t.conj()], -1) for t in (Lambda, P, B, C)]
    A = torch.diag(both[0]) - both[1].T @ both[1].conj()
    Abar, Bbar = discretize_dense(A, both[2], 0.3)
    expected = torch.stack([both[3] @ torch.linalg.matrix_power(Abar, k) @ Bbar for k in range(8)])
    step = discretize_dplr(Lambda[None], P[None], B[None], torch.tensor([0.3], dtype=torch.float64))
    for run in ("reference", *KERNELS):
        with implementation(run):
            kernel = dplr_kernel(2 * C[None], *step, 8)[0]
        assert (kernel - expected).abs().max() < 2e-13 * expected.abs().max()
    # the removable singularity of the continuous form: sum_l K_l (-1)^l = delta sum B C / 2, conjugates included
    kernel = dplr_kernel(2 * C[None], *step, 400)[0]
    alternating = (kernel * torch.tensor([1.0, -1.0]).repeat(200)).sum()
    assert alternating == pytest.approx(0.3 * float((B * C).sum().real), rel=1e-9)
    # Cauchy sums and Woodbury's identity, at roots of unity: -1 is the first here
    w = -torch.polar(torch.ones(7, dtype=torch.float64), torch.arange(7, dtype=torch.float64))
    powers = w.unsqueeze(-1) ** torch.arange(400)
    close("generating function", generating_function(2 * C[None], *step, w)[0], powers @ kernel.to(w.dtype), 1e-9)


def outputs_and_gradients(arguments: dict[str, Any], run: str) -> dict[str, Tensor]:
    leaves = {k: v.clone().requires_grad_() for k, v in arguments.items() if isinstance(v, Tensor)}
    with implementation(run), poisoned_memory():
        y, last = linear_system(**(arguments | leaves))
    total = y.sin().sum() + last.cos().sum()
    gradients = torch.autograd.grad(total, list(leaves.values()))
    return {"y": y, "last": last} | {f"gradient of {k}": g for k, g in zip(leaves, gradients, strict=True)}


@pytest.mark.parametrize("case", system_cases.CASES, ids=lambda case: case.name)
def test_linear_system(case: Any) -> None:
    arguments = system_cases.make(case)
    expected, got = (outputs_and_gradients(arguments, run) for run in ("reference", "portable"))
    for name, value in expected.items():
        close(name, got[name], value, 1e-12)
    single = system_cases.make(case, torch.float32)
    with implementation("portable"):
        y, last = linear_system(**single)
    close("y", y, expected["y"], system_op.tolerance[torch.float32])
    close("last", last, expected["last"], system_op.tolerance[torch.float32])


def test_linear_system_compiles_once_for_every_length() -> None:
    torch._dynamo.reset()
    arguments = system_cases.make(system_cases.CASES[-1])
    line = arguments["timeline"]
    fixed = [arguments[name] for name in ("A", "B", "C", "state")]

    def run(u: Tensor, reset: Tensor, mask: Tensor, *fixed: Tensor) -> tuple[Tensor, Tensor]:
        y, last = linear_system(u, *fixed[:3], state=fixed[3], timeline=type(line)(reset, mask), return_state=True)
        return y, last

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True, dynamic=True)
    for length in (131, 70, 37):
        with torch._dynamo.config.patch(error_on_recompile=length != 131):
            parts = [t[:, :length].clone() for t in (arguments["u"], line.reset, line.mask)]
            results = []
            for call in (run, compiled):
                leaves = [t.clone().requires_grad_() for t in fixed]
                y, last = call(*parts, *leaves)
                results.append([y, last, *torch.autograd.grad(y.sin().sum() + last.sum(), leaves)])
        for expected, got in zip(*results, strict=True):
            close("compiled", got, expected, 1e-13)


def test_wrong_inputs_say_what_was_expected() -> None:
    *tensors, length = dplr_cases.make("rank one")
    with pytest.raises(ValueError, match="complex"):
        dplr_kernel(tensors[0].real, *tensors[1:], length)
    with pytest.raises(ValueError, match="q must have shape"):
        dplr_kernel(*tensors[:3], tensors[3][:, :, :2], tensors[4], length)
    arguments = system_cases.make(system_cases.CASES[0])
    with pytest.raises(ValueError, match="all be float32 or all be float64"):
        linear_system(**(arguments | {"u": arguments["u"].float()}))
    with pytest.raises(ValueError, match="A must have shape"):
        linear_system(**(arguments | {"A": arguments["A"][:2]}))


@pytest.mark.parametrize("given", [(), ("state", "mask"), ("state", "reset", "mask")])
def test_the_last_state_without_a_readout(given: tuple[str, ...]) -> None:
    arguments = system_cases.make(Case("unread", {"B": 2, "L": 530, "D": 2, "N": 3, "M": 1}, given))
    _, last = linear_system(**arguments)
    y, unread = linear_system(**{**arguments, "C": arguments["C"][:, :0]})
    assert y.shape == (2, 530, 2, 0)
    torch.testing.assert_close(unread, last, rtol=1e-9, atol=1e-10)


def test_autocast_does_not_reach_a_linear_system() -> None:
    arguments = system_cases.make(system_cases.CASES[0], torch.float32)
    with implementation("portable"):
        y, last = linear_system(**arguments)
        with torch.autocast("cpu", torch.bfloat16):
            again, last_again = linear_system(**arguments)
    assert torch.equal(y, again)
    assert torch.equal(last, last_again)
