"""Mamba-3's op: the native gradients where the common cases do not reach."""

from __future__ import annotations

import native_cases as cases
import pytest
import torch
from torch import Tensor

from statescan import ops
from statescan.ops import native_gate as gate
from statescan.ops.case import Case
from statescan.ops.dispatch import implementation
from statescan.ops.mamba3.cases import make

STATE = ("angle", "ssm", "k", "v")
PER_POSITION = ("q", "k", "v", "z", "log_decay", "delta", "mix", "speed")


@pytest.mark.native
@pytest.mark.skipif(gate.module is None, reason=str(gate.unavailable))
@pytest.mark.parametrize("asked", [("y", *STATE), ("y",), ("ssm",), ("angle", "v"), ("k",)], ids="-".join)
@pytest.mark.parametrize("strength", [0.01, 8.0, 200.0])
@pytest.mark.parametrize("reset", ["none", "few", "behind"])
@pytest.mark.parametrize("rank", [1, 3])
def test_native_gradients_over_several_blocks(asked: tuple[str, ...], strength: float, reset: str, rank: int) -> None:
    """By name, from every output alone: decays that leave nothing, a reset inside a block, or behind all that exists."""
    torch.manual_seed(3)
    sizes = {"B": 2, "L": 150, "R": rank, "H": 4, "G": 2, "N": 18, "P": 9, "T": 7}
    given = make(Case("blocks", sizes, ("state", "gate", "weights")), torch.float64)
    inputs = {key: value for key, value in given.items() if isinstance(value, Tensor)}
    inputs |= {f"state {name}": value for name, value in zip(STATE, given["state"], strict=True)}
    inputs["log_decay"] = strength * inputs["log_decay"]
    line = cases.timeline_over_blocks(reset)
    found: dict[str, dict[str, Tensor]] = {}
    for name, dtype in (("reference", torch.float64), ("native", torch.float32)):
        leaves = {key: value.detach().to(dtype).clone() for key, value in inputs.items()}
        for key in PER_POSITION if name == "native" else ():
            leaves[key][~line.mask] = float("nan")
        leaves = {key: value.requires_grad_() for key, value in leaves.items()}
        arguments = {key: value for key, value in leaves.items() if not key.startswith("state ")}
        with implementation(name):
            state = tuple(leaves[f"state {part}"] for part in STATE)
            y, last = ops.mamba3(**arguments, state=state, timeline=line, return_state=True)
        outputs = {"y": y} | dict(zip(STATE, last, strict=True))
        draw = torch.Generator().manual_seed(7)
        cotangents = {key: torch.randn(out.shape, generator=draw).to(dtype) for key, out in outputs.items()}
        loss = sum((outputs[key] * cotangents[key]).sum() for key in asked)
        gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)  # type: ignore[arg-type]
        found[name] = dict(zip(leaves, gradients, strict=True))
    # The sums over positions of what the angles get cancel down to what reaches the first one: their rounding is that of the terms.
    largest = max(float(found["reference"][key].abs().max()) for key in ("speed", "q", "k"))
    for key, expected in found["reference"].items():
        size = expected.abs().max().clamp_min(max(1e-6, largest if key == "state angle" else 0.0))
        error = (found["native"][key] - expected).abs().max() / size
        assert error < 1e-5, (key, float(error))
