"""The door to the kernels: refusals, torch.library, compilers, and one OpenMP runtime in the process."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib import import_module
from typing import Any

import native_cases as cases
import pytest
import torch

import statescan.ops
from statescan import Timeline
from statescan.ops import native_gate as gate
from statescan.ops.dispatch import implementation, ops

needs_kernels = pytest.mark.skipif(gate.module is None, reason=str(gate.unavailable))
pytestmark = pytest.mark.native

MAKE: dict[str, tuple[Any, dict[str, Any]]] = {
    "selective_scan": (lambda: cases.selective_inputs(2, 70, 9, 5, 1), {"delta_softplus": True}),
    "causal_conv1d": (lambda: cases.conv_inputs(2, 70, 9, 4), {"activation": "silu"}),
    "ssd": (lambda: cases.ssd_inputs(2, 70, 3, 5, 6, 1), {"delta_softplus": True}),
    "diagonal_scan": (lambda: cases.diagonal_inputs((2, 70, 9), (1, 70, 9), torch.complex64, torch.complex64), {}),
    "linear_attention": (lambda: cases.attention_inputs(2, 70, 4, 5, 6, 2, "scalar"), {}),
    "delta_rule": (lambda: cases.delta_inputs(2, 70, 4, 5, 6, 2, "vector", 2, False), {}),
}
"""Inputs and options by op."""


def spy(op: str, inputs: cases.Inputs, timeline: Timeline | None, options: dict[str, Any]) -> dict[str, Any]:
    """The arguments with which the op calls an implementation."""
    seen: dict[str, Any] = {}
    original = ops[op].implementations["native"]

    def record(**arguments: Any) -> Any:
        seen.update(arguments)
        return original.run(**arguments)

    ops[op].implementations["native"] = type(original)(record, original.refuse)
    try:
        with implementation("native"):
            cases.OPS[op](**inputs, timeline=timeline, **options)
    finally:
        ops[op].implementations["native"] = original
    return seen


def library_arguments(op: str, grad: bool) -> tuple[Any, ...]:
    """Arguments for torch.ops.statescan.<op>, with a timeline."""
    torch.manual_seed(0)
    make, options = MAKE[op]
    inputs = make()
    a = spy(op, inputs, cases.random_timeline(op, {k: v.clone() for k, v in inputs.items()}), options)
    a = {k: v.detach().clone() if isinstance(v, torch.Tensor) else v for k, v in a.items()}
    for name in inputs:
        if isinstance(a.get(name), torch.Tensor):
            a[name].requires_grad_(grad)
    if op in ("selective_scan", "ssd"):
        a["interval"] = torch.rand(2, 70, requires_grad=grad)
    line = [a.get(k) for k in ("reset_to", "reset", "mask", "interval")]
    if op == "selective_scan":
        names = ("x", "delta", "A", "B", "C", "D", "z", "delta_bias", "state")
        return (*(a[k] for k in names), *line, True, 1.0, grad)
    if op == "ssd":
        names = ("x", "delta", "A", "B", "C", "D", "delta_bias", "state")
        return (*(a[k] for k in names), *line, True, 0.0, float("inf"), 1.0, grad)
    if op == "causal_conv1d":
        return (*(a[k] for k in ("x", "weight", "bias", "state", "reset", "mask")), True)
    if op in ("linear_attention", "delta_rule"):
        k, v = (a[name] if op == "delta_rule" else a[name].unsqueeze(2) for name in ("k", "v"))  # the kernels take writes
        return (a["q"], k, v, a.get("beta"), a["log_decay"], a.get("read"), a["state"], a["reset"], a["mask"], a["scale"], grad)
    return tuple(a[k] for k in ("a", "b", "state", "reset_to", "reset", "mask"))


@needs_kernels
@pytest.mark.parametrize("op", MAKE)
@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(op: str, grad: bool) -> None:
    checks = ("test_schema", "test_autograd_registration", "test_faketensor") + (("test_aot_dispatch_dynamic",) if grad else ())
    torch.library.opcheck(getattr(torch.ops.statescan, op).default, library_arguments(op, grad), test_utils=checks)


@needs_kernels
@pytest.mark.parametrize("op", MAKE)
def test_compiled_equals_eager(op: str) -> None:
    """aot_eager with fullgraph: the binding is not called while tracing, and values and gradients stay the same bits."""
    torch.manual_seed(0)
    make, options = MAKE[op]
    inputs = {k: v.requires_grad_() for k, v in make().items() if k != "reset_to"}

    def run(**tensors: torch.Tensor) -> torch.Tensor:
        y, last = cases.OPS[op](**tensors, return_state=True, **options)
        return y.abs().sum() + last.abs().sum()

    results = []
    for fn in (run, torch.compile(run, backend="aot_eager", fullgraph=True)):
        for tensor in inputs.values():
            tensor.grad = None
        with implementation("native"):
            value = fn(**inputs)
        value.backward()
        results.append((value.detach(), [tensor.grad for tensor in inputs.values()]))
    assert torch.equal(results[0][0], results[1][0])
    for eager, compiled in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=1e-6)


@needs_kernels
@pytest.mark.parametrize("op", MAKE)
def test_double_backward_raises_and_names_portable(op: str) -> None:
    torch.manual_seed(0)
    make, options = MAKE[op]
    inputs = {k: v.requires_grad_() for k, v in make().items() if k != "reset_to"}
    with implementation("native"):
        y = cases.OPS[op](**inputs, **options)
    name = next(name for name in ("x", "b", "v") if name in inputs)
    (first,) = torch.autograd.grad(y.abs().square().sum(), inputs[name], create_graph=True)
    with pytest.raises(RuntimeError, match="portable"):
        first.abs().sum().backward()


@needs_kernels
def test_autocast_leaves_the_dtypes_alone() -> None:
    inputs = cases.selective_inputs(1, 5, 8, 4, 1)
    with torch.no_grad(), implementation("native"):
        expected = cases.OPS["selective_scan"](**inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = cases.OPS["selective_scan"](**inputs)
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


@needs_kernels
def test_conjugate_and_negative_views_are_carried_out() -> None:
    a, b = (0.5 * torch.randn(2, 9, 4, dtype=torch.complex64) for _ in range(2))
    scan = cases.OPS["diagonal_scan"]
    negative = b.conj().imag
    assert negative.is_neg()
    with torch.no_grad(), implementation("native"):
        assert torch.equal(scan(a.conj(), b.conj()), scan(a.conj().resolve_conj(), b.conj().resolve_conj()))
        assert torch.equal(scan(a.real, negative), scan(a.real.clone(), negative.resolve_neg().clone()))


@needs_kernels
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"x": torch.zeros(1, 5, 8, dtype=torch.float64)}, "float64"),
        ({"x": torch.zeros(1, 5, 8, device="meta")}, "run on a CPU"),
        (
            {"A": torch.zeros(8, 600), "B": torch.zeros(1, 5, 1, 600), "C": torch.zeros(1, 5, 1, 600), "state": torch.zeros(1, 8, 600)},
            "up to",
        ),
        ({"return_states": True}, "every state"),
    ],
)
def test_refusals_are_sentences(change: dict[str, Any], reason: str) -> None:
    arguments = spy("selective_scan", cases.selective_inputs(1, 5, 8, 4, 1), None, {}) | change
    assert reason in str(ops["selective_scan"].available(**arguments)["native"])


@needs_kernels
def test_transforms_are_refused() -> None:
    inputs = cases.conv_inputs(1, 5, 8, 4)

    def under(x: torch.Tensor) -> torch.Tensor:
        arguments = {**inputs, "x": x, "activation": None, "reset": None, "mask": None}
        assert "functorch" in str(ops["causal_conv1d"].available(**arguments)["native"])
        return x

    torch.func.vmap(under)(inputs["x"].unsqueeze(0))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(inputs["x"], inputs["x"])
        arguments = {**inputs, "x": dual, "activation": None, "reset": None, "mask": None}
        assert "tangent" in str(ops["causal_conv1d"].available(**arguments)["native"])


def child(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False
    )


@needs_kernels
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/maps")
def test_one_openmp_runtime_in_the_process() -> None:
    """After a parallel region of torch and one of ours, one file with OpenMP in its name is mapped."""
    code = (
        "import torch; torch.set_num_threads(2); torch.randn(1000, 1000) @ torch.randn(1000, 1000)\n"
        "from statescan.ops import causal_conv1d, native_gate as gate\n"
        "causal_conv1d(torch.randn(4, 200, 300), torch.randn(300, 4)); print(gate.openmp)\n"
        "print(*{line.split()[-1] for line in open('/proc/self/maps') if 'omp' in line.split()[-1].rsplit('/', 1)[-1]}, sep='\\n')"
    )
    done = child(code)
    assert done.returncode == 0, done.stderr
    used, *mapped = done.stdout.split()
    runtimes = [path for path in mapped if re.match(r"lib(gomp|iomp5|omp)\b", os.path.basename(path))]
    assert len(runtimes) == 1, mapped
    assert os.path.basename(used) == os.path.basename(runtimes[0])


@needs_kernels
def test_environment_forces_an_instruction_set() -> None:
    code = "from statescan.ops import native_gate as gate; print(gate.instruction_set())"
    assert child(code, STATESCAN_CPU="baseline").stdout.strip() == "baseline"
    assert "STATESCAN_CPU must be" in child(code, STATESCAN_CPU="sse9").stderr


def test_without_the_compiled_module_native_refuses_and_can_be_required() -> None:
    missing = "import sys; sys.modules['statescan._native'] = None\n"
    code = missing + (
        "import torch, statescan.ops as o; from statescan.ops.dispatch import explain\n"
        "o.causal_conv1d(torch.randn(1, 5, 3), torch.randn(3, 4)); print(explain()[-1])"
    )
    done = child(code, STATESCAN_REQUIRE_NATIVE="0")
    assert "native refused: the compiled kernels are not installed" in done.stdout, done.stderr
    required = child(missing + "import statescan.ops", STATESCAN_REQUIRE_NATIVE="1")
    assert required.returncode != 0
    assert "STATESCAN_REQUIRE_NATIVE=1" in required.stderr


@needs_kernels
@pytest.mark.parametrize("name", ["mamba3", "log_linear", "mesa"])
def test_several_cotangents_side_by_side(name: str) -> None:
    """A kernel cannot read those; the gradients are those of one after the other."""
    module = import_module(f"statescan.ops.{name}.cases")
    plain = next(case for case in module.CASES if not case.options)
    arguments = module.make(plain, torch.float32) | {"return_state": False}
    inputs = {key: value.requires_grad_() for key, value in arguments.items() if isinstance(value, torch.Tensor)}
    y = getattr(statescan.ops, name)(**arguments | inputs)
    cotangents = torch.randn(3, *y.shape, generator=torch.Generator().manual_seed(0))
    together = torch.autograd.grad(y, inputs["q"], cotangents, is_grads_batched=True, retain_graph=True)[0]
    for found, cotangent in zip(together, cotangents, strict=True):
        alone = torch.autograd.grad(y, inputs["q"], cotangent, retain_graph=True)[0]
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)


@needs_kernels
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the kernels set the control register of x86 alone")
def test_tiny_numbers_are_zeros_in_a_kernel_alone() -> None:
    """Decays underflow by the thousand, and some processors need a hundred cycles for each; torch's own numbers, on any thread, stay."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        tiny = torch.full((1, 1024, 1024), 1e-40)
        assert not statescan.ops.causal_conv1d(tiny, torch.ones(1024, 4)).any()
        assert bool((tiny * 1.0 > 0).all())
    finally:
        torch.set_num_threads(before)
