"""Inputs for the tests of the native kernels, and the comparison with the float64 reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from statescan import Timeline
from statescan.ops import causal_conv1d, diagonal_scan, selective_scan, ssd
from statescan.ops.dispatch import implementation

Inputs = dict[str, Tensor]
OPS: dict[str, Callable[..., Any]] = {
    "selective_scan": selective_scan, "causal_conv1d": causal_conv1d, "ssd": ssd, "diagonal_scan": diagonal_scan,
}  # fmt: skip
EXISTING = ("x", "delta", "z", "B", "C", "b")  # inputs that hold NaN where a position does not exist


def selective_inputs(batch: int, length: int, width: int, n: int, groups: int) -> Inputs:
    r = torch.randn
    return {
        "x": r(batch, length, width), "delta": r(batch, length, width), "A": -torch.rand(width, n) * 4 - 0.1,
        "B": r(batch, length, groups, n), "C": r(batch, length, groups, n), "D": r(width), "z": r(batch, length, width),
        "delta_bias": r(width), "state": r(batch, width, n), "reset_to": r(batch, width, n),
    }  # fmt: skip


def ssd_inputs(batch: int, length: int, heads: int, p: int, n: int, groups: int) -> Inputs:
    r = torch.randn
    return {
        "x": r(batch, length, heads, p), "delta": r(batch, length, heads), "A": -torch.rand(heads) * 2 - 0.05,
        "B": r(batch, length, groups, n), "C": r(batch, length, groups, n), "D": r(heads, p), "delta_bias": r(heads),
        "state": r(batch, heads, p, n), "reset_to": r(batch, heads, p, n),
    }  # fmt: skip


def conv_inputs(batch: int, length: int, width: int, taps: int) -> Inputs:
    r = torch.randn
    return {"x": r(batch, length, width), "weight": r(width, taps), "bias": r(width), "state": r(batch, taps - 1, width)}


def diagonal_inputs(shape: tuple[int, ...], a_shape: tuple[int, ...], a_dtype: torch.dtype, b_dtype: torch.dtype) -> Inputs:
    state = (shape[0], *shape[2:])
    return {
        "a": 0.6 * torch.randn(a_shape, dtype=a_dtype), "b": torch.randn(shape, dtype=b_dtype),
        "state": torch.randn(state, dtype=b_dtype), "reset_to": torch.randn(state, dtype=b_dtype),
    }  # fmt: skip


def random_timeline(op: str, inputs: Inputs) -> Timeline:
    """Resets, holes (with NaN in the inputs there) and, where it means something, an interval; some resets fall into holes."""
    first = inputs["b" if op == "diagonal_scan" else "x"]
    batch, length = first.shape[:2]
    mask, reset = torch.rand(batch, length) > 0.3, torch.rand(batch, length) < 0.15
    mask[:, -1] = True
    for name in EXISTING:
        if name in inputs:
            inputs[name][~mask] = float("nan")
    if op not in ("selective_scan", "ssd"):
        return Timeline(reset, mask)
    return Timeline(reset, mask, torch.where(mask, 2 * torch.rand(batch, length), float("nan")))


def wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def run(op: str, how: str, inputs: Inputs, timeline: Timeline | None, **options: Any) -> Inputs:
    """y, the last state and every gradient, by name."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in inputs.items()}
    arguments: dict[str, Any] = dict(leaves)
    if timeline is not None and isinstance(timeline.interval, Tensor):
        leaves["interval"] = timeline.interval.detach().clone().requires_grad_()
        timeline = timeline._replace(interval=leaves["interval"])
    if timeline is None or timeline.reset is None:
        for collection in (arguments, leaves):
            collection.pop("reset_to", None)
    with implementation(how):
        y, last = OPS[op](**arguments, timeline=timeline, return_state=True, **options)
    generator = torch.Generator().manual_seed(7)
    loss = torch.zeros((), dtype=torch.float64)
    for out in (y, last):
        parts = torch.view_as_real(out) if out.is_complex() else out
        loss = loss + (parts.double() * torch.randn(parts.shape, generator=generator, dtype=torch.float64)).sum()
    loss.backward()
    return {"y": y.detach(), "last": last.detach(), **{f"gradient of {n}": t.grad for n, t in leaves.items() if t.grad is not None}}


def worst(got: Inputs, expected: Inputs) -> dict[str, float]:
    """Largest error by name, relative to the largest expected number."""
    assert got.keys() == expected.keys()
    return {name: ((wide(got[name]) - e).abs().max() / e.abs().max().clamp_min(1e-6)).item() for name, e in expected.items() if e.numel()}


def compare(op: str, inputs: Inputs, timeline: Timeline | None, tolerance: float, **options: Any) -> None:
    """The native kernel against the float64 reference."""
    got = run(op, "native", inputs, timeline, **options)
    up = {name: wide(tensor) for name, tensor in inputs.items()}
    if timeline is not None and isinstance(timeline.interval, Tensor):
        timeline = timeline._replace(interval=timeline.interval.double())
    errors = worst(got, run(op, "reference", up, timeline, **options))
    assert all(error <= tolerance for error in errors.values()), errors
