"""Op level: every op's benchmark cases, forward and with backward, against the float64 reference, with time and memory."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import statescan as ss
from benchmarks.limits import CHUNK, LEVELS, SOLVED, Machine
from benchmarks.peers.serve import peak_memory
from benchmarks.timing import Timing, interleaved, timed
from statescan.ops.case import Case

Row = dict[str, Any]

NAMES = (
    "selective_scan", "ssd", "linear_attention", "delta_rule", "mlstm", "mamba3", "log_linear", "mesa", "slstm", "diagonal_scan",
    "causal_conv1d",
)  # fmt: skip
CHECKED = 256
"""Positions that the float64 reference, a plain loop, runs over: all of these ops are causal, so a prefix decides."""
SHORT = 0.02
"""Seconds: a shorter call is made again until so much time has passed, and counts with its mean."""
LONG = 1 << 16
"""From here on nothing but the native implementation is measured, and three times."""
LONGEST = 1 << 20
"""From here on forward only: the gradients would fill the memory of a small machine."""
MAMBAPY = 512 * 1536 * 16
"""State updates up to which mambapy is measured: it holds several tensors of this size."""


def cases(module: Any, quick: bool) -> list[Case]:
    """The op's own, and its shape of 64 positions in a batch of 32."""
    chosen: list[Case] = list(module.BENCH)
    short = next(case for case in chosen if case.sizes["L"] == 64)
    chosen.insert(1, Case(f"{short.name}_batch_32", short.sizes | {"B": 32}, short.options))
    return [case for case in chosen if case.sizes["L"] <= 512] if quick else chosen


def updates(case: Case) -> int:
    """States times positions; elements, for the convolution."""
    return math.prod(value for letter, value in case.sizes.items() if letter not in "GKT")


def least(op: str, case: Case, moved: int, machine: Machine) -> float:
    """Seconds: the larger of the arithmetic and of the bytes of inputs and output."""
    arithmetic = 0.0
    if op == "selective_scan" and machine.scan is not None:
        arithmetic = updates(case) / machine.scan
    if op == "ssd":
        sizes = case.sizes
        a_position = sizes["H"] * sizes["P"] * (4 * sizes["N"] + CHUNK) + sizes["G"] * CHUNK * sizes["N"]
        arithmetic = sizes["B"] * sizes["L"] * a_position / machine.product(512, 768, 768)
    if op in ("linear_attention", "delta_rule", "mlstm", "mamba3"):
        sizes = case.sizes
        products = 1 + sizes.get("W", 1) * (2 if op == "delta_rule" else 1)  # a query, and for each write what it reads and what it adds
        state = sizes["H"] * sizes["N"] * sizes["P"] * sizes.get("R", 1)  # mamba3: R of both
        arithmetic = 2 * products * sizes["B"] * sizes["L"] * state / machine.product(512, 768, 768)
    if op in ("log_linear", "mesa"):
        # A write and a query a level; or the writes of both matrices, the fit, and a product for each step of the solution.
        sizes = case.sizes
        passes = 1 + SOLVED + 2 if op == "mesa" else 3 * LEVELS if "delta" in case.options else 1 + LEVELS
        arithmetic = 2 * passes * sizes["B"] * sizes["L"] * sizes["H"] * sizes["N"] * sizes["P"] / machine.product(512, 768, 768)
    if op == "slstm":  # each head's recurrent matrix, once a position
        sizes = case.sizes
        matrix = 4 * sizes["P"] ** 2
        rate = machine.again(4 * matrix)
        arithmetic = 2 * sizes["B"] * sizes["L"] * sizes["H"] * matrix / machine.product(512, 768, 768)
        if rate is not None:
            arithmetic = max(arithmetic, 4 * sizes["L"] * sizes["H"] * matrix / rate)
    return max(arithmetic, moved / machine.bandwidth)


def run(op: str, quick: bool, limits: Callable[[], Machine]) -> list[Row]:
    """A row for each case and implementation."""
    machine = limits()
    module = importlib.import_module(f"statescan.ops.{op}.cases")
    function = getattr(ss.ops, op)
    table = []
    for case in cases(module, quick):
        arguments = module.make(case)
        if "return_state" in inspect.signature(function).parameters:
            arguments["return_state"] = True
        inputs = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
        length = case.sizes["L"]
        cut = {name: value[:, :CHECKED] if value.ndim > 1 and value.shape[1] == length else value for name, value in inputs.items()}
        wide = {name: value.to(torch.complex128 if value.is_complex() else torch.float64) for name, value in cut.items()}
        with torch.no_grad(), ss.implementation("reference"):
            expected = function(**(arguments | wide))[0]
        ways: dict[str, Callable[..., Any]] = {}
        for name in ("native", "portable"):
            if name in ss.ops.dispatch.ops[op].implementations and (name == "native" or length < LONG):
                ways[name] = _forced(function, name, arguments)
        if op == "selective_scan" and updates(case) <= MAMBAPY:
            ways["mambapy's parallel scan"] = _mambapy
        for name, way in ways.items():
            row: Row = {"case": case.name, "B": case.sizes["B"], "L": length, "who": name}
            try:
                row |= _measure(op, case, way, inputs, expected, machine)
            except ImportError as error:
                row["note"] = f"absent: {error}"
            table.append(row)
    return table


def _forced(function: Callable[..., Any], name: str, arguments: dict[str, Any]) -> Callable[..., Tensor]:
    def call(**inputs: Tensor) -> Tensor:
        with ss.implementation(name):
            y = function(**(arguments | inputs))[0]
        assert isinstance(y, Tensor)
        return y

    return call


def _mambapy(**inputs: Tensor) -> Tensor:
    """Its block's scan, with the step's softplus and the gate around it, as in the block."""
    try:
        from mambapy.pscan import pscan
    except ImportError:
        raise ImportError("mambapy is not installed: pip install mambapy") from None
    x, z = inputs["x"], inputs["z"]
    delta = torch.nn.functional.softplus(inputs["delta"] + inputs["delta_bias"])
    decay = torch.exp(delta.unsqueeze(-1) * inputs["A"])
    states = pscan(decay, (delta * x).unsqueeze(-1) * inputs["B"].unsqueeze(2))
    y = (states @ inputs["C"].unsqueeze(-1)).squeeze(3) + inputs["D"] * x
    return y * torch.nn.functional.silu(z)


def _measure(op: str, case: Case, way: Callable[..., Tensor], inputs: dict[str, Tensor], expected: Tensor, machine: Machine) -> Row:
    with torch.no_grad():
        y, forward_memory = grown(lambda: way(**inputs))
        error = float((y[:, :CHECKED].to(expected.dtype) - expected).abs().max() / expected.abs().max())
    tolerance = ss.ops.dispatch.ops[op].tolerance[torch.float32]
    if not error <= tolerance:
        raise RuntimeError(f"{op}, {case.name}: off by {error:.1e}, more than {tolerance:.0e}: no figures on a failing check")
    moved = sum(t.numel() * t.element_size() for t in inputs.values()) + y.numel() * y.element_size()
    cotangent = torch.ones_like(y)  # in a model somebody else makes it
    del y
    leaves = {name: value.detach().requires_grad_() for name, value in inputs.items()}

    def forward() -> None:
        with torch.no_grad():
            way(**inputs)

    def both() -> None:
        y = way(**leaves)
        torch.autograd.grad(y, list(leaves.values()), cotangent)

    calls = {"forward": timed(forward, SHORT)}
    both_memory = None
    if case.sizes["L"] < LONGEST:
        both()  # the first backward of a process imports things
        _, both_memory = grown(both)
        calls["both"] = timed(both, SHORT)
    timings = interleaved(calls, 3 if case.sizes["L"] >= LONG else 5)
    one, two = timings["forward"], timings.get("both")
    assert isinstance(one, Timing)
    row: Row = {
        "forward, ms": one.median * 1e3,
        "low": one.low * 1e3,
        "high": one.high * 1e3,
        "repeats": one.repeats,
        "G/s": updates(case) / one.median / 1e9,
        "of the limit": least(op, case, moved, machine) / one.median,
        "error": error,
    }
    if isinstance(two, Timing):
        row |= {"with backward, ms": two.median * 1e3, "backward / forward": two.median / one.median - 1}
    return row | {"forward, MiB": forward_memory, "with backward, MiB": both_memory}


def grown(call: Callable[[], Any]) -> tuple[Any, float | None]:
    """The result, and by how many MiB the process grew at its peak."""
    before = peak_memory(reset=True)
    result = call()
    after = peak_memory()
    return result, None if before is None or after is None else after - before
