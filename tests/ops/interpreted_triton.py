"""Values, states and every gradient by name against the float64 reference; run by ``test_triton.py`` under TRITON_INTERPRET=1."""

from __future__ import annotations

import functools
from importlib import import_module
from typing import Any

import pytest
import torch
import triton_interpreter
from test_implementations import check_close, function_of, results, widen

from statescan import Timeline, explain
from statescan.ops.case import Case
from statescan.ops.causal_conv1d import cases as conv_cases
from statescan.ops.dispatch import implementation, ops
from statescan.ops.selective_scan import cases as scan_cases

triton_interpreter.hasten()
scan_triton = import_module("statescan.ops.selective_scan.triton")
scan_triton.CHUNK = 8  # several chunks in a few positions
import_module("statescan.ops.causal_conv1d.triton").BE = 16  # several tiles in a few channels

F, BF = torch.float32, torch.bfloat16
PLAIN = ("D", "z", "bias", "softplus", "state")
SCAN = [
    (Case("plain", {"B": 2, "L": 7, "E": 6, "N": 4, "G": 1}), F),
    (Case("one_position_everything", {"B": 3, "L": 1, "E": 6, "N": 4, "G": 2}, scan_cases.ALL), F),
    (Case("chunks", {"B": 1, "L": 21, "E": 5, "N": 3, "G": 1}, PLAIN), F),
    (Case("exactly_two_chunks", {"B": 1, "L": 16, "E": 3, "N": 2, "G": 3}, ("D", "state", "reset")), F),
    (Case("constant_interval", {"B": 1, "L": 9, "E": 4, "N": 1, "G": 1}, ("softplus", "constant_interval", "mask")), F),
    (Case("everything", {"B": 3, "L": 19, "E": 10, "N": 5, "G": 2}, scan_cases.ALL), F),
    (Case("everything", {"B": 2, "L": 11, "E": 6, "N": 4, "G": 2}, scan_cases.ALL), BF),
    (Case("two_blocks", {"B": 1, "L": 3, "E": 5, "N": 130, "G": 1}, ("bias", "softplus", "state", "reset", "reset_to")), F),
]
CONV = [*((case, F) for case in conv_cases.CASES), (conv_cases.CASES[-1], BF)]
GRID = [
    pytest.param(op, case, dtype, id=f"{op}-{case.name}-{str(dtype).removeprefix('torch.')}")
    for op, group in (("selective_scan", SCAN), ("causal_conv1d", CONV))
    for case, dtype in group
]


def make(op: str, case: Case, dtype: torch.dtype) -> dict[str, Any]:
    return (scan_cases if op == "selective_scan" else conv_cases).make(case, dtype)


@pytest.mark.parametrize(("op", "case", "dtype"), GRID)
def test_agrees_with_the_reference(op: str, case: Case, dtype: torch.dtype) -> None:
    arguments = make(op, case, dtype)
    got = results(op, "triton", arguments)
    check_close(got, results(op, "reference", {k: widen(v) for k, v in arguments.items()}), ops[op].tolerance[dtype])


def small(op: str) -> dict[str, Any]:
    case = next(case for case, _ in (SCAN if op == "selective_scan" else CONV) if case.name == "everything")
    return make(op, case._replace(sizes=case.sizes | {"B": 1, "L": 9, "E": 4}), F)


@pytest.mark.parametrize("op", ["selective_scan", "causal_conv1d"])
def test_rows_that_are_not_contiguous(op: str) -> None:
    """In a mixer, x, z, B and C are parts of one projection."""
    arguments = small(op)
    with implementation("triton"), torch.no_grad():
        expected = function_of(op)(**arguments)
        for name in ("x", "z", "B", "C"):
            if name in arguments:
                arguments[name] = torch.cat([arguments[name], arguments[name]], dim=-1)[..., : arguments[name].shape[-1]]
                assert not arguments[name].is_contiguous()
        for got, want in zip(function_of(op)(**arguments), expected, strict=True):
            assert torch.equal(got, want)


def test_without_a_last_gradient_or_without_an_output_gradient() -> None:
    for op in ("selective_scan", "causal_conv1d"):
        for which in (0, 1):
            gradients = []
            for name in ("triton", "reference"):
                arguments = small(op)
                line = arguments["timeline"]
                arguments["timeline"] = line._replace(mask=None, interval=None)
                leaf = arguments["x"] = torch.ones_like(arguments["x"]).requires_grad_()
                arguments = {k: v.nan_to_num() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
                with implementation(name):
                    function_of(op)(**arguments)[which].sum().backward()
                gradients.append(leaf.grad)
            torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("op", ["selective_scan", "causal_conv1d"])
def test_compilers_see_one_operator(op: str) -> None:
    arguments = small(op)
    names: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        names.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    reset, mask = arguments["timeline"].reset, arguments["timeline"].mask
    interval = arguments.pop("timeline").interval

    function = function_of(op)

    def run(**moving: Any) -> Any:
        return function(**moving, timeline=Timeline(reset, mask, interval))

    with implementation("triton"), torch.no_grad():
        got = torch.compile(run, backend=backend, fullgraph=True)(**arguments)
        expected = run(**arguments)
        assert explain(1)[0].ran == "triton"
    assert any(f"statescan.{op}_triton" in name for name in names), names
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


@functools.cache
def direct_arguments(op: str) -> tuple[Any, ...]:
    torch.manual_seed(0)
    r = torch.randn
    if op == "causal_conv1d":
        tensors = [r(1, 3, 4), r(4, 2), r(4), r(1, 1, 4)]
        return (*(t.requires_grad_() for t in tensors), torch.tensor([[False, True, False]]), None, True)
    tensors = [r(1, 3, 4), r(1, 3, 4), -r(4, 2).abs(), r(1, 3, 1, 2), r(1, 3, 1, 2), r(4)]
    tensors = [t.requires_grad_() for t in tensors]
    return (*tensors, None, r(4).requires_grad_(), r(1, 4, 2).requires_grad_(), None, None, None, None, True, 1.0, True)


@pytest.mark.parametrize("op", ["selective_scan", "causal_conv1d"])
def test_registered_as_torch_wants_it(op: str) -> None:
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(getattr(torch.ops.statescan, f"{op}_triton").default, direct_arguments(op), test_utils=checks)
