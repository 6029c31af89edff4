"""Law 5: every implementation of every op agrees with the reference in float64, within the tolerance declared beside the op.

Values, states, and the gradient of every tensor argument by name; inputs at positions that do not exist are NaN; fresh memory holds NaN.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import statescan.ops._template  # noqa: F401 - held to the same law
from statescan.ops.case import Case
from statescan.ops.dispatch import implementation, ops
from statescan.timeline import Timeline

Results = dict[str, Tensor]
DTYPES = (torch.float64, torch.float32, torch.bfloat16)


OPS = [op for op in ops if importlib.util.find_spec(f"statescan.ops.{op}")]
"""Those of the package; other tests register toys."""


def cases_of(op: str) -> Any:
    return importlib.import_module(f"statescan.ops.{op}.cases")


def function_of(op: str) -> Any:
    return getattr(importlib.import_module(f"statescan.ops.{op}"), op.lstrip("_"))


GRID = [
    pytest.param(op, case, name, dtype, id=f"{op}-{case.name}-{name}-{str(dtype).removeprefix('torch.')}")
    for op in OPS
    for case in getattr(cases_of(op), "CASES", ())
    for name in ops[op].implementations
    for dtype in DTYPES
    if not (name == "reference" and dtype == torch.float64)  # that one is the oracle
    and getattr(cases_of(op), "supports", lambda *_: True)(case, dtype)
]


def widen(value: Any) -> Any:
    if isinstance(value, Timeline):
        return Timeline(*(widen(field) for field in value))
    if isinstance(value, tuple):  # a state of several tensors
        return tuple(widen(part) for part in value)
    if not isinstance(value, Tensor) or value.dtype == torch.bool:
        return value
    return value.to(torch.complex128 if value.is_complex() else torch.float64)


def rounded(output: Tensor, generator: torch.Generator) -> Tensor:
    """Random numbers that every dtype holds exactly, so that the oracle gets the same ones."""
    parts = [torch.randn(output.shape, generator=generator).bfloat16().double() for _ in range(2)]
    return (torch.complex(*parts) if output.is_complex() else parts[0]).to(output.dtype)


def leaves(arguments: dict[str, Any], change: Callable[[Tensor], Tensor]) -> tuple[dict[str, Any], Results]:
    """The arguments with ``change`` applied to every tensor, those inside tuples too (but not to the timeline), and these by name."""
    line = arguments["timeline"]
    found, structure = pytree.tree_flatten_with_path({k: v for k, v in arguments.items() if k != "timeline"})
    changed = [change(leaf) if isinstance(leaf, Tensor) else leaf for _, leaf in found]
    named = {
        ".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path): leaf
        for (path, _), leaf in zip(found, changed, strict=True)
        if isinstance(leaf, Tensor)
    }
    return pytree.tree_unflatten(changed, structure) | {"timeline": line}, named


def results(op: str, name: str, arguments: dict[str, Any]) -> Results:
    """Every output, and the gradient of every tensor argument under random cotangents."""
    arguments, inputs = leaves(arguments, lambda tensor: tensor.detach().clone().requires_grad_())
    line = arguments["timeline"]
    if isinstance(line.interval, Tensor):
        inputs["interval"] = line.interval.detach().clone().requires_grad_()
        arguments["timeline"] = line._replace(interval=inputs["interval"])
    with implementation(name):
        outputs = pytree.tree_leaves(function_of(op)(**arguments))
    generator = torch.Generator().manual_seed(1)
    cotangents = [rounded(output, generator) for output in outputs]
    gradients = torch.autograd.grad(outputs, list(inputs.values()), cotangents, allow_unused=True)
    named = {f"output {i}" if i else "y": output.detach() for i, output in enumerate(outputs)}
    pairs = zip(inputs.items(), gradients, strict=True)
    return named | {f"gradient of {k}": torch.zeros_like(v) if g is None else g for (k, v), g in pairs}


@functools.cache
def oracle(op: str, index: int, dtype: torch.dtype) -> Results:
    module = cases_of(op)
    return results(op, "reference", {k: widen(v) for k, v in module.make(module.CASES[index], dtype).items()})


def check_close(got: Results, expected: Results, tolerance: float) -> None:
    assert got.keys() == expected.keys()
    wrong = []
    for key, want in expected.items():
        assert torch.isfinite(want).all(), f"the oracle's {key} is not finite"
        error = (got[key].to(want.dtype) - want).abs().amax().item() if want.numel() else 0.0
        allowed = tolerance * max(1.0, want.abs().amax().item() if want.numel() else 0.0)
        if not error <= allowed:  # a NaN is not
            wrong.append(f"{key} is off by {error:.2e}; allowed is {allowed:.2e}")
    assert not wrong, "; ".join(wrong)


@pytest.mark.parametrize(("op", "case", "name", "dtype"), GRID)
def test_agrees_with_the_reference(op: str, case: Case, name: str, dtype: torch.dtype) -> None:
    module = cases_of(op)
    arguments = module.make(case, dtype)
    try:
        got = results(op, name, arguments)
    except ValueError as error:
        if "refuses" not in str(error):
            raise
        pytest.skip(str(error))
    check_close(got, oracle(op, module.CASES.index(case), dtype), ops[op].tolerance[dtype])


def test_a_wrong_result_is_seen() -> None:
    expected = {"y": torch.ones(3, dtype=torch.float64)}
    check_close({"y": torch.ones(3)}, expected, 1e-5)
    with pytest.raises(AssertionError, match="y is off by"):
        check_close({"y": torch.tensor([1.0, 1.0, 1.0001])}, expected, 1e-5)
    with pytest.raises(AssertionError, match="y is off by"):
        check_close({"y": torch.tensor([1.0, 1.0, float("nan")])}, expected, 1e-5)


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_a_reference_a_portable_and_cases(op: str) -> None:
    assert {"reference", "portable"} <= ops[op].implementations.keys()
    assert {torch.float64, torch.float32} <= ops[op].tolerance.keys()
    assert callable(cases_of(op).make)
    assert "Args:" in function_of(op).__doc__


def test_fresh_memory_is_poisoned() -> None:
    assert torch.empty(7).isnan().all()


@pytest.mark.parametrize("op", [op for op in OPS if hasattr(cases_of(op), "CASES")])
def test_reference_passes_gradcheck(op: str) -> None:
    """Analytic against numerical derivatives, with everything switched on but NaN (which numerical derivatives cannot take)."""
    module = cases_of(op)
    everything = max(module.CASES, key=lambda case: len(case.options))
    case = everything._replace(sizes=everything.sizes | {"B": 1, "L": 4} | {"E": 2, "H": 2, "P": 2, "N": 2, "M": 2, "K": 3})
    arguments = module.make(case, torch.float64)
    if "reset" in case.options:
        arguments["timeline"] = arguments["timeline"]._replace(reset=torch.tensor([[False, False, True, False]]))
    if "mask" in case.options:
        arguments["timeline"] = arguments["timeline"]._replace(mask=torch.tensor([[True, False, True, True]]))
    arguments, inputs = leaves(arguments, lambda tensor: tensor.nan_to_num(0.4).requires_grad_())
    line = arguments["timeline"]
    if isinstance(line.interval, Tensor):
        arguments["timeline"] = line._replace(interval=line.interval.nan_to_num(0.4))

    def run(*tensors: Tensor) -> Any:
        given = iter(tensors)
        return tuple(pytree.tree_leaves(function_of(op)(**leaves(arguments, lambda _: next(given))[0])))

    tensors = tuple(inputs.values())
    with implementation("reference"):
        assert torch.autograd.gradcheck(run, tensors, fast_mode=True)
    with implementation("portable"):
        assert torch.autograd.gradcheck(run, tensors, fast_mode=True)
        assert torch.autograd.gradgradcheck(run, tensors, fast_mode=True)
