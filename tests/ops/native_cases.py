"""Inputs for the tests of the native kernels, and the comparison with the float64 reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan import Timeline
from statescan.ops import causal_conv1d, delta_rule, diagonal_scan, linear_attention, log_linear, mamba3, mesa, selective_scan, slstm, ssd
from statescan.ops.dispatch import implementation

Inputs = dict[str, Tensor]


def stacked_slstm(gates: Tensor, R: Tensor, state: Tensor, *, timeline: Timeline | None = None, return_state: bool = False) -> Any:
    """With h, c, n and m as one tensor (4, B, H, P)."""
    y, last = slstm(gates, R, state=tuple(state.unbind()), timeline=timeline, return_state=True)  # type: ignore[arg-type]
    return (y, torch.stack(last)) if return_state else y  # type: ignore[arg-type]


def flat_mamba3(*, timeline: Timeline | None = None, return_state: bool = False, **inputs: Any) -> Any:
    """With the incoming states by name, and the last ones in one row."""
    state = tuple(inputs.pop(f"state_{name}") for name in ("angle", "ssm", "k", "v"))
    y, last = mamba3(**inputs, state=state, timeline=timeline, return_state=True)  # type: ignore[misc]
    return (y, torch.cat([part.flatten(1) for part in last], dim=1)) if return_state else y


def placed_log_linear(*, state: Tensor, timeline: Timeline | None = None, return_state: bool = False, **inputs: Any) -> Any:
    """Each row's document has had another number of positions."""
    before = 29 * torch.arange(len(state)) + 7
    y, (last, _) = log_linear(**inputs, state=(state, before), timeline=timeline, return_state=True)
    return (y, last) if return_state else y


def flat_mesa(*, root: Tensor, S: Tensor, timeline: Timeline | None = None, return_state: bool = False, **inputs: Any) -> Any:
    """With the incoming G by its root, and the last states in one row."""
    y, last = mesa(**inputs, state=(root @ root.mT, S), timeline=timeline, return_state=True)
    return (y, torch.cat([part.flatten(1) for part in last], dim=1)) if return_state else y


OPS: dict[str, Callable[..., Any]] = {
    "selective_scan": selective_scan, "causal_conv1d": causal_conv1d, "ssd": ssd, "diagonal_scan": diagonal_scan,
    "linear_attention": linear_attention, "delta_rule": delta_rule, "slstm": stacked_slstm, "mamba3": flat_mamba3,
    "log_linear": placed_log_linear, "mesa": flat_mesa,
}  # fmt: skip
EXISTING = (
    "x",
    "delta",
    "z",
    "B",
    "C",
    "b",
    "q",
    "k",
    "v",
    "beta",
    "read",
    "log_decay",
    "gates",
    "mix",
    "speed",
    "level_scale",
)  # inputs that hold NaN where a position does not exist


def selective_inputs(batch: int, length: int, width: int, n: int, groups: int) -> Inputs:
    r = torch.randn
    return {
        "x": r(batch, length, width), "delta": r(batch, length, width), "A": -torch.rand(width, n) * 4 - 0.1,
        "B": r(batch, length, groups, n), "C": r(batch, length, groups, n), "D": r(width), "z": r(batch, length, width),
        "delta_bias": r(width), "state": r(batch, width, n), "reset_to": r(batch, width, n),
    }  # fmt: skip


def product_inputs(batch: int, length: int, width: int, n: int, groups: int, rank: int) -> Inputs:
    """Of the selective scan, its steps as a product."""
    return selective_inputs(batch, length, width, n, groups) | {
        "delta": torch.randn(batch, length, rank), "delta_weight": rank**-0.5 * torch.randn(width, rank),
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


def attention_inputs(batch: int, length: int, heads: int, keys: int, width: int, groups: int, decay: str | None) -> Inputs:
    """Of linear attention; decay: "constant", "scalar", "vector" or None."""
    r = torch.randn
    inputs = {
        "q": r(batch, length, groups, keys), "k": F.normalize(r(batch, length, groups, keys), dim=-1), "v": r(batch, length, heads, width),
        "state": r(batch, heads, keys, width),
    }  # fmt: skip
    shapes = {"constant": (heads,), "scalar": (batch, length, heads), "vector": (batch, length, heads, keys)}
    if decay is not None:
        inputs["log_decay"] = -torch.rand(shapes[decay])
    return inputs


def delta_inputs(
    batch: int, length: int, heads: int, keys: int, width: int, groups: int, decay: str | None, writes: int, read: bool
) -> Inputs:
    """Of the delta rule, with several writes or a read of its own; some strengths and reads are zero."""
    inputs = attention_inputs(batch, length, heads, keys, width, groups, decay)
    inputs["k"] = F.normalize(torch.randn(batch, length, writes, groups, keys), dim=-1)
    inputs["v"] = torch.randn(batch, length, writes, heads, width)
    used = torch.rand(batch, length, writes, heads) > 0.2
    if read:
        inputs["read"] = used.unsqueeze(-1) * F.normalize(torch.randn(batch, length, writes, heads, keys), dim=-1)
    else:
        inputs["beta"] = used * 2 * torch.rand(batch, length, writes, heads)
    return inputs


def slstm_inputs(batch: int, length: int, heads: int, cells: int) -> Inputs:
    """The scalar LSTM; the last row's cells are empty at first."""
    state = torch.randn(4, batch, heads, cells)
    state[2] = 1 + state[2].abs()
    state[:, -1] = 0
    return {
        "gates": 2 * torch.randn(batch, length, 4, heads, cells),
        "R": 0.7 * cells**-0.5 * torch.randn(4, heads, cells, cells),
        "state": state,
    }  # fmt: skip


def mamba3_inputs(batch: int, length: int, rank: int, heads: int, groups: int, n: int, p: int, angles: int, gate: bool) -> Inputs:
    """Mamba-3; with a gate there are weights a write too."""
    r = torch.randn
    inputs = {
        "q": r(batch, length, rank, groups, n), "k": r(batch, length, rank, groups, n), "v": r(batch, length, heads, p),
        "log_decay": -2 * torch.rand(batch, length, heads), "delta": torch.rand(batch, length, heads),
        "mix": torch.rand(batch, length, heads),
        "speed": 3 * r(batch, length, angles), "q_bias": r(heads, rank, n), "k_bias": r(heads, rank, n), "D": r(heads),
        "state_angle": r(batch, heads, angles), "state_ssm": r(batch, heads, p, n), "state_k": r(batch, rank, heads, n),
        "state_v": r(batch, heads, p),
    }  # fmt: skip
    if gate:
        inputs["z"] = r(batch, length, heads, p)
        inputs |= {f"{name}_weight": r(heads, rank, p) for name in "vzy"}
    return inputs


def log_linear_inputs(batch: int, length: int, heads: int, groups: int, keys: int, width: int, levels: int, delta: bool) -> Inputs:
    r = torch.randn
    inputs = {
        "q": r(batch, length, groups, keys), "k": F.normalize(r(batch, length, groups, keys), dim=-1), "v": r(batch, length, heads, width),
        "level_scale": 2 * torch.rand(batch, length, heads, levels), "log_decay": -0.5 * torch.rand(batch, length, heads),
        "state": r(batch, heads, levels, keys, width),
    }  # fmt: skip
    return inputs | {"beta": 2 * torch.rand(batch, length, heads)} if delta else inputs


def mesa_inputs(batch: int, length: int, heads: int, keys: int, width: int) -> Inputs:
    r = torch.randn
    return {
        "q": F.normalize(r(batch, length, heads, keys), dim=-1), "k": F.normalize(r(batch, length, heads, keys), dim=-1),
        "v": r(batch, length, heads, width), "beta": torch.rand(batch, length, heads), "log_decay": -0.5 * torch.rand(batch, length, heads),
        "ridge": 0.5 + torch.rand(heads, keys), "root": 0.5 * keys**-0.5 * r(batch, heads, keys, keys), "S": r(batch, heads, keys, width),
    }  # fmt: skip


def timeline_over_blocks(resets: str) -> Timeline:
    """Two rows of 150 positions, a tenth of which is missing: without resets, with a few inside blocks of 64, or with one behind all."""
    mask, reset = torch.rand(2, 150) > 0.1, torch.zeros(2, 150, dtype=torch.bool)
    if resets == "few":
        reset[0, [40, 100]] = reset[1, 75] = True
    if resets == "behind":
        mask[:, 145:], reset[:, 147] = False, True
    return Timeline(reset, mask)


def random_timeline(op: str, inputs: Inputs) -> Timeline:
    """Resets, holes (with NaN in the inputs there) and, where it means something, an interval; some resets fall into holes."""
    first = next(inputs[name] for name in ("x", "b", "q", "gates") if name in inputs)
    batch, length = first.shape[:2]
    mask, reset = torch.rand(batch, length) > 0.3, torch.rand(batch, length) < 0.15
    mask[:, -1] = True
    for name in EXISTING:
        if name in inputs and inputs[name].shape[:2] == mask.shape:
            inputs[name][~mask] = float("nan")
    if op not in ("selective_scan", "ssd"):
        return Timeline(reset, mask)
    return Timeline(reset, mask, torch.where(mask, 2 * torch.rand(batch, length), float("nan")))


def wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def leaf(tensor: Tensor) -> Tensor:
    """A copy whose gradient is asked for."""
    return tensor.detach().clone().requires_grad_()


def run(op: str, how: str, inputs: Inputs, timeline: Timeline | None, **options: Any) -> Inputs:
    """y, the last state and every gradient, by name."""
    leaves = {name: leaf(tensor) for name, tensor in inputs.items()}
    arguments: dict[str, Any] = dict(leaves)
    if timeline is not None and isinstance(timeline.interval, Tensor):
        leaves["interval"] = leaf(timeline.interval)
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
