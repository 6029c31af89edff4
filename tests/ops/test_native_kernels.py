"""Native kernels against the float64 reference: values, last state and every gradient by name, at odd shapes, with a timeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import native_cases as cases
import pytest
import torch

from statescan.ops import native_gate as gate
from statescan.ops import selective_scan
from statescan.ops.dispatch import implementation
from statescan.ops.selective_scan import steps
from statescan.timeline import Timeline

pytestmark = [pytest.mark.native, pytest.mark.skipif(gate.module is None, reason=str(gate.unavailable))]

F, C = torch.float32, torch.complex64
SOFTPLUS = {"delta_softplus": True}
CASES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "scan one of all": ("selective_scan", lambda: cases.selective_inputs(1, 1, 1, 1, 1), SOFTPLUS),
    "scan L2": ("selective_scan", lambda: cases.selective_inputs(2, 2, 9, 3, 1), SOFTPLUS),
    "scan groups": ("selective_scan", lambda: cases.selective_inputs(2, 7, 12, 3, 2), SOFTPLUS),
    "scan two tiles": ("selective_scan", lambda: cases.selective_inputs(2, 130, 72, 16, 1), SOFTPLUS),
    "scan N5": ("selective_scan", lambda: cases.selective_inputs(1, 65, 200, 5, 1), SOFTPLUS),
    "scan N64": ("selective_scan", lambda: cases.selective_inputs(3, 65, 66, 64, 2), SOFTPLUS),
    "scan without states": ("selective_scan", lambda: cases.selective_inputs(2, 40, 20, 0, 1), SOFTPLUS),
    "scan product": ("selective_scan", lambda: cases.product_inputs(2, 70, 150, 5, 2, 7), SOFTPLUS),
    "conv one tap": ("causal_conv1d", lambda: cases.conv_inputs(2, 5, 3, 1), {}),
    "conv L2": ("causal_conv1d", lambda: cases.conv_inputs(2, 2, 5, 4), {"activation": "silu"}),
    "conv L130": ("causal_conv1d", lambda: cases.conv_inputs(2, 130, 172, 4), {"activation": "silu"}),
    "conv eight taps": ("causal_conv1d", lambda: cases.conv_inputs(3, 65, 33, 8), {}),
    "ssd one of all": ("ssd", lambda: cases.ssd_inputs(1, 1, 1, 1, 1, 1), SOFTPLUS),
    "ssd L2": ("ssd", lambda: cases.ssd_inputs(2, 2, 5, 3, 4, 1), SOFTPLUS),
    "ssd groups, limit": ("ssd", lambda: cases.ssd_inputs(2, 7, 6, 5, 3, 2), {**SOFTPLUS, "delta_limit": (0.3, 1.5)}),
    "ssd L130": ("ssd", lambda: cases.ssd_inputs(2, 130, 5, 24, 16, 1), SOFTPLUS),
    "ssd N33": ("ssd", lambda: cases.ssd_inputs(1, 65, 12, 9, 33, 2), SOFTPLUS),
    "ssd P64 N64": ("ssd", lambda: cases.ssd_inputs(1, 130, 2, 64, 64, 1), SOFTPLUS),
    "diagonal one of all": ("diagonal_scan", lambda: cases.diagonal_inputs((1, 1, 1), (1, 1, 1), F, F), {}),
    "diagonal full": ("diagonal_scan", lambda: cases.diagonal_inputs((2, 7, 5), (2, 7, 5), F, F), {}),
    "diagonal time-invariant": ("diagonal_scan", lambda: cases.diagonal_inputs((2, 65, 3, 50), (1, 1, 3, 1), C, C), {}),
    "diagonal real decay": ("diagonal_scan", lambda: cases.diagonal_inputs((3, 130, 70), (3, 130, 1), F, C), {}),
    "attention one of all": ("linear_attention", lambda: cases.attention_inputs(1, 1, 1, 1, 1, 1, "scalar"), {}),
    "attention groups": ("linear_attention", lambda: cases.attention_inputs(2, 7, 6, 5, 3, 2, None), {}),
    "attention scalar": ("linear_attention", lambda: cases.attention_inputs(2, 130, 2, 33, 50, 1, "scalar"), {"scale": 0.7}),
    "attention vector": ("linear_attention", lambda: cases.attention_inputs(1, 65, 2, 70, 17, 2, "vector"), {}),
    "delta one of all": ("delta_rule", lambda: cases.delta_inputs(1, 1, 1, 1, 1, 1, "vector", 1, False), {}),
    "delta L2": ("delta_rule", lambda: cases.delta_inputs(2, 2, 4, 3, 5, 2, None, 1, False), {}),
    "delta scalar": ("delta_rule", lambda: cases.delta_inputs(2, 130, 2, 33, 66, 1, "scalar", 1, False), {}),
    "delta constant": ("delta_rule", lambda: cases.delta_inputs(1, 65, 3, 64, 64, 3, "constant", 1, False), {}),
    "delta vector": ("delta_rule", lambda: cases.delta_inputs(3, 65, 2, 96, 25, 2, "vector", 1, False), {"scale": 0.7}),
    "delta three writes": ("delta_rule", lambda: cases.delta_inputs(2, 50, 2, 9, 40, 1, "scalar", 3, False), {}),
    "delta read": ("delta_rule", lambda: cases.delta_inputs(2, 70, 2, 24, 33, 2, "vector", 2, True), {}),
    "delta scalar read": ("delta_rule", lambda: cases.delta_inputs(1, 66, 4, 8, 9, 2, "scalar", 2, True), {}),
    "slstm one of all": ("slstm", lambda: cases.slstm_inputs(1, 1, 1, 1), {}),
    "slstm L2": ("slstm", lambda: cases.slstm_inputs(2, 2, 2, 3), {}),
    "slstm seven rows": ("slstm", lambda: cases.slstm_inputs(7, 66, 1, 9), {}),
    "slstm five rows": ("slstm", lambda: cases.slstm_inputs(5, 20, 2, 24), {}),
    "slstm one row": ("slstm", lambda: cases.slstm_inputs(1, 70, 2, 42), {}),
    "mamba3 one of all": ("mamba3", lambda: cases.mamba3_inputs(1, 1, 1, 1, 1, 2, 1, 1, False), {}),
    "mamba3 L2": ("mamba3", lambda: cases.mamba3_inputs(2, 2, 3, 2, 1, 4, 3, 1, True), {"layout": "halves"}),
    "mamba3 one write": ("mamba3", lambda: cases.mamba3_inputs(2, 70, 1, 4, 2, 18, 40, 8, True), {}),
    "mamba3 two writes": ("mamba3", lambda: cases.mamba3_inputs(3, 20, 2, 2, 2, 16, 33, 0, False), {"layout": "halves"}),
    "mamba3 four writes": ("mamba3", lambda: cases.mamba3_inputs(1, 66, 4, 2, 1, 32, 25, 16, True), {}),
    "mamba3 seven writes": ("mamba3", lambda: cases.mamba3_inputs(2, 19, 7, 2, 1, 6, 20, 2, True), {"layout": "halves"}),
    "log-linear one of all": ("log_linear", lambda: cases.log_linear_inputs(1, 1, 1, 1, 1, 1, 1, False), {}),
    "log-linear five heads": ("log_linear", lambda: cases.log_linear_inputs(2, 139, 5, 1, 18, 9, 9, False), {"scale": 0.7}),
    "log-linear few levels": ("log_linear", lambda: cases.log_linear_inputs(2, 70, 2, 2, 5, 33, 3, False), {}),
    "log-linear delta": ("log_linear", lambda: cases.log_linear_inputs(2, 139, 4, 2, 9, 20, 10, True), {}),
    "log-linear delta wide": ("log_linear", lambda: cases.log_linear_inputs(1, 66, 1, 1, 64, 64, 8, True), {}),
    "log-linear shared": ("log_linear", lambda: cases.log_linear_inputs(1, 130, 6, 1, 5, 7, 8, True), {}),
    "mesa one of all": ("mesa", lambda: cases.mesa_inputs(1, 1, 1, 1, 1), {}),
    "mesa L70": ("mesa", lambda: cases.mesa_inputs(2, 70, 2, 18, 9), {}),
    "mesa four blocks": ("mesa", lambda: cases.mesa_inputs(1, 200, 2, 33, 20), {}),
    "mesa wide": ("mesa", lambda: cases.mesa_inputs(1, 14, 1, 64, 70), {}),
    "diagonal one row": ("diagonal_scan", lambda: cases.diagonal_inputs((2, 30, 9), (1, 30, 9), C, C), {}),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, cases.Inputs, dict[str, Any]]:
    torch.manual_seed(1)
    op, make, options = CASES[request.param]
    return op, make(), options


@pytest.fixture(autouse=True)
def poison() -> Any:
    """Memory that nobody wrote holds NaN."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


def test_plain(case: tuple[str, cases.Inputs, dict[str, Any]]) -> None:
    op, inputs, options = case
    cases.compare(op, inputs, None, 1e-5, **options)


def test_timeline(case: tuple[str, cases.Inputs, dict[str, Any]]) -> None:
    op, inputs, options = case
    cases.compare(op, inputs, cases.random_timeline(op, inputs), 1e-5, **options)


def without_gradient(inputs: cases.Inputs, timeline: bool) -> dict[str, float]:
    """Errors of the selective scan."""
    line = cases.random_timeline("selective_scan", inputs) if timeline else None
    up = {name: cases.wide(tensor) for name, tensor in inputs.items()}
    wide_line = line if line is None else line._replace(interval=line.interval.double())  # type: ignore[union-attr]
    expected = cases.run("selective_scan", "reference", up, wide_line, delta_softplus=True)
    if line is None:
        inputs.pop("reset_to")
    with torch.no_grad(), implementation("native"):
        y, last = selective_scan(**inputs, timeline=line, delta_softplus=True, return_state=True)  # type: ignore[arg-type]
    return cases.worst({"y": y, "last": last}, {"y": expected["y"], "last": expected["last"]})


@pytest.mark.parametrize("n", [4, 8, 16, 32, 64])
@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("timeline", [False, True])
def test_a_few_positions_without_gradient(n: int, length: int, timeline: bool) -> None:
    """Decoding has a loop of its own, whose lanes are states."""
    torch.manual_seed(4)
    inputs = cases.selective_inputs(3, length, 150, n, 2)
    errors = without_gradient(inputs, timeline)
    assert all(error <= 1e-5 for error in errors.values()), errors


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("length", [1, 2, 3, 24, 25, 70])
@pytest.mark.parametrize("timeline", [False, True])
def test_steps_multiplied_while_scanning(length: int, timeline: bool) -> None:
    """Without gradients the kernel makes the product of the steps itself."""
    torch.manual_seed(6)
    inputs = cases.product_inputs(2, length, 150, 16, 2, 7)
    errors = without_gradient(inputs, timeline)
    assert all(error <= 1e-5 for error in errors.values()), errors


def test_steps_are_multiplied_within_the_kernel() -> None:
    """Not before, where that is faster: float32, no gradients, not too few positions or too many factors."""
    torch.manual_seed(6)
    before = mock.patch.object(steps, "linear", side_effect=AssertionError("a product of its own"))

    def scan(length: int, rank: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> None:
        inputs = cases.product_inputs(1, length, 80, 4, 1, rank)
        del inputs["reset_to"]
        inputs |= {name: inputs[name].to(dtype).requires_grad_(grad) for name in ("x", "delta", "delta_weight", "B", "C", "z")}
        with before:
            selective_scan(**inputs, delta_softplus=True)

    scan(16, 128)
    for other in ((15, 128), (16, 129), (16, 8, torch.bfloat16), (16, 8, torch.float32, True)):
        with pytest.raises(AssertionError, match="a product of its own"):
            scan(*other)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["native", "portable", "reference"])
@pytest.mark.parametrize("length", [1, 2, 40])
@pytest.mark.parametrize("grad", [False, True])
def test_autocast_does_not_round_the_steps(how: str, length: int, grad: bool) -> None:
    torch.manual_seed(6)
    inputs = cases.product_inputs(2, length, 40, 4, 1, 33)
    del inputs["reset_to"]
    inputs["x"].requires_grad_(grad)
    with implementation(how):
        expected = selective_scan(**inputs, delta_softplus=True)
        with torch.autocast("cpu", torch.bfloat16):
            got = selective_scan(**inputs, delta_softplus=True)
    assert torch.equal(got, expected)


def test_a_scan_over_nothing_has_gradients() -> None:
    inputs = {name: cases.leaf(tensor) for name, tensor in cases.selective_inputs(2, 0, 20, 4, 1).items() if name != "reset_to"}
    with implementation("native"):
        y, last = selective_scan(**inputs, return_state=True)
    (y.sum() + 2 * last.sum()).backward()
    assert torch.equal(inputs["state"].grad, torch.full_like(inputs["state"], 2))
    assert not inputs["A"].grad.any()


@pytest.mark.parametrize(
    "name",
    ["scan two tiles", "scan product", "conv L130", "ssd L130", "attention scalar", "delta vector", "delta read", "slstm L2", "mamba3 L2",
     "log-linear delta", "mesa L70"],
)  # fmt: skip
def test_bfloat16(name: str) -> None:
    torch.manual_seed(2)
    op, make, options = CASES[name]
    keep = ("A", "D", "bias", "delta_bias", "reset_to", "ridge", "root", "S") + (() if op == "causal_conv1d" else ("state",))
    inputs = {n: t if n in keep else t.bfloat16() for n, t in make().items()}
    cases.compare(op, inputs, cases.random_timeline(op, inputs), 2e-2, **options)


@pytest.mark.parametrize(
    "name",
    ["scan two tiles", "scan groups", "conv L130", "ssd L130", "diagonal time-invariant", "diagonal full", "attention scalar",
     "delta scalar", "delta read", "slstm seven rows", "mamba3 one write", "mamba3 four writes", "log-linear five heads",
     "log-linear delta", "log-linear shared", "mesa L70"],
)  # fmt: skip
@pytest.mark.parametrize("timeline", [False, True])
def test_same_bits_at_any_number_of_threads(name: str, timeline: bool, on_threads: Callable[[int], None]) -> None:
    torch.manual_seed(3)
    op, make, options = CASES[name]
    inputs = make()
    line = cases.random_timeline(op, inputs) if timeline else None
    results = []
    for threads in (1, 2, 3):
        on_threads(threads)
        results.append(cases.run(op, "native", inputs, line, **options))
    for other in results[1:]:
        for key, value in results[0].items():
            assert torch.equal(value, other[key]), key


LONG: dict[str, tuple[str, Any]] = {
    "adding levels": ("log_linear", lambda: cases.log_linear_inputs(1, 2700, 2, 1, 4, 5, 14, False)),
    "levels with the delta rule": ("log_linear", lambda: cases.log_linear_inputs(1, 2700, 2, 1, 4, 5, 14, True)),
    "mamba3": ("mamba3", lambda: cases.mamba3_inputs(1, 1300, 16, 2, 1, 4, 3, 1, True)),
    "mesa": ("mesa", lambda: cases.mesa_inputs(1, 17000, 1, 3, 2)),
}


@pytest.mark.parametrize("name", LONG)
def test_long_calls_are_gone_through_in_parts(name: str) -> None:
    """The backward pass keeps 128 states a head at a time; `portable` is the measure, as the loop would take minutes."""
    torch.manual_seed(8)
    op, make = LONG[name]
    inputs = make()
    reset = torch.zeros(1, next(iter(inputs.values())).shape[1], dtype=torch.bool)
    reset[:, -50] = True
    got = cases.run(op, "native", inputs, Timeline(reset))
    expected = cases.run(op, "portable", {key: cases.wide(tensor) for key, tensor in inputs.items()}, Timeline(reset))
    errors = cases.worst(got, expected)
    assert all(error <= 1e-5 for error in errors.values()), errors


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers in every second place of the last axis, one element off the start."""
    room = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 1), float("nan"), dtype=tensor.dtype)
    room[..., 1::2] = tensor
    return room[..., 1::2]


def unaligned(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers, contiguous, one element past an aligned address."""
    room = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    room[1:] = tensor.flatten()
    return room[1:].view(tensor.shape)


@pytest.mark.parametrize(
    "name",
    ["scan groups", "scan N5", "scan product", "conv L130", "ssd L130", "ssd N33", "ssd L2", "diagonal full", "diagonal one row",
     "attention vector", "delta three writes", "delta read", "slstm five rows", "slstm one row", "mamba3 two writes", "mamba3 four writes",
     "log-linear five heads", "log-linear delta", "mesa L70"],
)  # fmt: skip
@pytest.mark.parametrize("place", [strided, unaligned])
def test_strides_and_alignment_change_nothing(name: str, place: Any) -> None:
    torch.manual_seed(4)
    op, make, options = CASES[name]
    inputs = make()
    inputs.pop("reset_to", None)
    fn = cases.OPS[op]
    with torch.no_grad(), cases.implementation("native"):
        expected = fn(**inputs, return_state=True, **options)
        got = fn(**{n: place(t) for n, t in inputs.items()}, return_state=True, **options)
    for e, g in zip(expected, got, strict=True):
        assert torch.equal(e, g)


@pytest.mark.usefixtures("isa")
def test_every_instruction_set() -> None:
    for op, make, options in CASES.values():
        torch.manual_seed(5)
        inputs = make()
        cases.compare(op, inputs, cases.random_timeline(op, inputs), 1e-5, **options)


def test_exponential_and_softplus_are_accurate() -> None:
    """Through the scan itself: N = 1, L = 1, x = 0, state = 1 makes the state exp(delta A); delta = 1 shows the softplus as the step."""
    values = torch.linspace(-80, 0, 4001)
    zero, one = torch.zeros(1, 1, 4001), torch.ones(1, 1, 1)
    with torch.no_grad(), cases.implementation("native"):
        _, state = cases.OPS["selective_scan"](zero, zero + 1, values[:, None], one, one, state=torch.ones(1, 4001, 1), return_state=True)
        raw = torch.linspace(-40, 40, 4001)
        y = cases.OPS["selective_scan"](zero + 1, raw.view(1, 1, -1), torch.zeros(4001, 1), one, one, delta_softplus=True)
    error = (state.flatten().double() / values.double().exp() - 1).abs().max()
    assert error < 6e-6  # the argument's own rounding, |x| 2^-24, comes on top of the polynomial's 2e-7
    near = values > -1
    assert (state.flatten().double() / values.double().exp() - 1)[near].abs().max() < 3e-7
    assert (y.flatten().double() / torch.nn.functional.softplus(raw.double(), threshold=1000) - 1).abs().max() < 4e-6
