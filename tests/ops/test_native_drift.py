"""A float32 state does not drift: 100,000 tokens in chunks, the state handed over, against float64 in one piece."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from statescan.ops import native_gate as gate
from statescan.ops import selective_scan, ssd
from statescan.ops.dispatch import implementation

pytestmark = [pytest.mark.native, pytest.mark.skipif(gate.module is None, reason=str(gate.unavailable))]
LENGTH, CHUNK = 100_000, 997


def steps(*shape: int) -> torch.Tensor:
    """Log-uniform over the published range of initial steps: the slowest state remembers a thousand tokens."""
    return torch.exp(torch.empty(shape).uniform_(-6.9, -2.3))


def inputs(op: str) -> tuple[Any, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The op, what has a time axis and what has none."""
    r = torch.randn
    if op == "selective_scan":
        moving = {"x": r(1, LENGTH, 8), "delta": steps(1, LENGTH, 8), "B": r(1, LENGTH, 4), "C": r(1, LENGTH, 4)}
        return selective_scan, moving, {"A": -torch.tensor([1.0, 2.0, 8.0, 16.0]).repeat(8, 1), "D": r(8)}
    moving = {"x": r(1, LENGTH, 2, 4), "delta": steps(1, LENGTH, 2), "B": r(1, LENGTH, 8), "C": r(1, LENGTH, 8)}
    return ssd, moving, {"A": -torch.tensor([1.0, 16.0]), "D": r(2)}


@pytest.mark.parametrize("op", ["selective_scan", "ssd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_drift_over_100k_tokens(op: str, dtype: torch.dtype) -> None:
    fn, moving, still = inputs(op)
    moving = {name: tensor.to(dtype) for name, tensor in moving.items()}
    state = None
    outputs = []
    with torch.no_grad():
        for first in range(0, LENGTH, CHUNK):
            part = {name: tensor[:, first : first + CHUNK] for name, tensor in moving.items()}
            with implementation("native"):
                y, state = fn(**part, **still, state=state, return_state=True)
            outputs.append(y)
        wide = {name: tensor.double() for name, tensor in {**moving, **still}.items()}
        with implementation("portable"):
            expected, expected_state = fn(**wide, return_state=True)
    assert state.dtype == torch.float32
    assert (state.double() - expected_state).abs().max() <= 1e-5 * expected_state.abs().max()
    y = torch.cat(outputs, 1).double()
    error = (y - expected).abs().amax(dim=tuple(range(2, y.ndim))).flatten() / expected.abs().max()
    allowed = 1e-5 if dtype == torch.float32 else 2**-8  # bfloat16 outputs are rounded once
    assert error.max() <= allowed
    tenth = LENGTH // 10
    assert error[-tenth:].max() <= 3 * error[:tenth].max() + 1e-9  # late tokens are as exact as early ones
