"""The mesa layer: weighted ridge regression, its limits, and what stopping early costs."""

from __future__ import annotations

from typing import Any

import native_cases as cases
import pytest
import torch

from statescan import ops
from statescan.ops import native_gate as gate
from statescan.ops.case import Case
from statescan.ops.dispatch import implementation
from statescan.ops.mesa.cases import make
from statescan.timeline import Timeline

CASE = Case("test", {"B": 2, "L": 70, "H": 2, "P": 4, "N": 8})
NAMES = ("reference", "portable")


def arguments(**options: Any) -> dict[str, Any]:
    return make(CASE, torch.float64) | {"timeline": Timeline(), "return_state": False} | options


@pytest.mark.parametrize("name", NAMES)
def test_it_is_weighted_ridge_regression(name: str) -> None:
    """At every position: the W that minimises sum of weight |v - W^T k|^2 + |W|^2 under the ridge, applied to q; by least squares."""
    given = arguments()
    with implementation(name):
        y = ops.mesa(**given)
    for head, t in ((0, 0), (1, 5), (0, 69)):
        total = given["log_decay"][0, : t + 1, head].cumsum(0)
        weight = ((total[-1] - total).exp() * given["beta"][0, : t + 1, head]).sqrt().unsqueeze(1)
        rows = torch.cat([weight * given["k"][0, : t + 1, head], torch.diag(given["ridge"][head].sqrt())])
        values = torch.cat([weight * given["v"][0, : t + 1, head], torch.zeros(8, 4, dtype=torch.float64)])
        W = torch.linalg.lstsq(rows, values).solution
        torch.testing.assert_close(y[0, t, head], given["q"][0, t, head] @ W, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_large_ridge_is_linear_attention(name: str) -> None:
    given = arguments(ridge=torch.full((2, 8), 1e8, dtype=torch.float64))
    written = given["beta"].unsqueeze(-1) * given["k"]
    with implementation(name):
        y = ops.mesa(**given)
        expected = ops.linear_attention(given["q"], written, given["v"], given["log_decay"], scale=1.0)
    torch.testing.assert_close(1e8 * y, expected, atol=1e-6, rtol=0)


def test_fewer_iterations_approach_the_solution() -> None:
    given = arguments()
    with implementation("reference"):
        exact = ops.mesa(**given)
    with implementation("portable"):
        errors = [float((ops.mesa(**given, iterations=n) - exact).abs().max()) for n in (1, 2, 4, 6, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1e-2
    assert errors[-1] < 1e-10


def test_stopping_early_is_the_same_by_chunks_and_by_steps() -> None:
    given = arguments(iterations=3, return_state=True)
    with implementation("portable"):
        whole, last = ops.mesa(**given)
        state, pieces = None, []
        for t in range(70):
            step = {key: given[key][:, t : t + 1] for key in ("q", "k", "v", "beta", "log_decay")}
            y, state = ops.mesa(**step, ridge=given["ridge"], iterations=3, state=state, return_state=True)
            pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-11, rtol=0)
    for got, expected in zip(state, last, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


def test_a_full_size_head_in_float32() -> None:
    """128 channels and the published 30 iterations, where they do not solve exactly."""
    case = Case("head", {"B": 1, "L": 200, "H": 1, "P": 8, "N": 128})
    given = make(case, torch.float32) | {"timeline": Timeline(), "return_state": False}
    given["log_decay"] = 0.05 * given["log_decay"]
    wide = {key: value.double() if isinstance(value, torch.Tensor) else value for key, value in given.items()}
    with implementation("reference"):
        exact = ops.mesa(**wide)
    with implementation("portable"):
        y = ops.mesa(**given)
    assert (y - exact).abs().max() < 1e-3 * exact.abs().max()


@pytest.mark.native
@pytest.mark.skipif(gate.module is None, reason=str(gate.unavailable))
@pytest.mark.parametrize("asked", [("y", "G", "S"), ("y",), ("G",), ("S",)], ids="-".join)
@pytest.mark.parametrize("strength", [0.01, 8.0, 200.0])
@pytest.mark.parametrize("reset", ["none", "few", "behind"])
def test_native_gradients_over_several_blocks(asked: tuple[str, ...], strength: float, reset: str) -> None:
    """By name, from every output alone: states that are not symmetric, decays that leave nothing, a reset inside a block or behind all."""
    torch.manual_seed(3)
    given = make(Case("blocks", {"B": 2, "L": 150, "H": 2, "P": 9, "N": 18}, ("state",)), torch.float64)
    state = dict(zip("GS", given.pop("state"), strict=True))
    state["G"] = state["G"] + 0.2 * (torch.randn(2, 2, 18, 18) - torch.randn(2, 2, 18, 18)).double()
    given["log_decay"] = strength * given["log_decay"]
    line = cases.timeline_over_blocks(reset)
    cotangents = [torch.randn(2, 150, 2, 9), torch.randn(2, 2, 18, 18), torch.randn(2, 2, 18, 9)]
    inputs = {key: given[key] for key in ("q", "k", "v", "beta", "log_decay", "ridge")} | state
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, dtype in (("reference", torch.float64), ("native", torch.float32)):
        leaves = {key: value.to(dtype).clone() for key, value in inputs.items()}
        for key in ("q", "k", "v", "beta", "log_decay") if name == "native" else ():
            leaves[key][~line.mask] = float("nan")
        leaves = {key: value.requires_grad_() for key, value in leaves.items()}
        arguments = {key: value for key, value in leaves.items() if key not in "GS"}
        with implementation(name):
            y, last = ops.mesa(**arguments, state=(leaves["G"], leaves["S"]), timeline=line, return_state=True)
        outputs = {"y": y, "G": last[0], "S": last[1]}
        loss = sum((outputs[key] * c.to(dtype)).sum() for key, c in zip(outputs, cotangents, strict=True) if key in asked)
        gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)  # type: ignore[arg-type]
        found[name] = dict(zip(leaves, gradients, strict=True))
    for key, expected in found["reference"].items():
        error = (found["native"][key] - expected).abs().max() / expected.abs().max().clamp_min(1e-6)
        assert error < 1e-5, (key, float(error))


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="ridge must have shape"):
        ops.mesa(**arguments(ridge=torch.ones(8)))
    with pytest.raises(ValueError, match="iterations must be positive; got 0"):
        ops.mesa(**arguments(iterations=0))
