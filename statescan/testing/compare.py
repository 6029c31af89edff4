"""How two runs are compared: outputs, final states and gradients by name, with the first place where they part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from statescan.state import State
from statescan.timeline import Timeline

Path = Callable[[Tensor, Timeline | None, State | None], tuple[Tensor, State | None]]
"""One way to run a layer: (x, timeline, incoming state or None) -> (y, outgoing state or None)."""

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest error of a whole layer, relative to the largest expected value (or to 0.1 if that is larger), by the dtype that ran.
The ops' own tolerances are tighter; a layer amplifies them by its projections."""


class LawError(AssertionError):
    """Two runs that a law calls equal are not."""


@dataclass(frozen=True)
class Outcome:
    """What a run gave. ``tensors`` holds the output, the state's fields and the gradients, by readable name."""

    tensors: dict[str, Tensor]

    @property
    def y(self) -> Tensor:
        return self.tensors["output"]


def state_fields(state: State | None, prefix: str = "state") -> dict[str, Tensor]:
    """Field path -> tensor of a state: ``state.1.ssm``."""
    if state is None:
        return {}
    return {prefix + _readable(path): leaf for path, leaf in pytree.tree_flatten_with_path(state)[0] if isinstance(leaf, Tensor)}


def run(
    path: Path,
    module: nn.Module,
    x: Tensor,
    timeline: Timeline | None = None,
    state: State | None = None,
    *,
    gradients: bool = True,
) -> Outcome:
    """Run a path and, with ``gradients``, differentiate a fixed random combination of its outputs by input, parameters and state."""
    if not gradients:
        with torch.no_grad():
            y, last = path(x, timeline, state)
        return Outcome({"output": y, **state_fields(last)})
    sources: dict[str, Tensor] = {}
    if x.is_floating_point():
        x = x.detach().requires_grad_()
        sources["gradient of the input"] = x
    if state is not None:
        state = pytree.tree_map(_leaf, state)
        incoming = state_fields(state, "gradient of the incoming state")
        sources |= {name: leaf for name, leaf in incoming.items() if leaf.requires_grad}
    sources |= {f"gradient of {name}": p for name, p in module.named_parameters() if p.requires_grad}
    with torch.enable_grad():
        y, last = path(x, timeline, state)
        results = {"output": y, **state_fields(last)}
        total = torch.zeros((), dtype=torch.float64)
        for i, tensor in enumerate(results.values()):
            if tensor.is_floating_point() and tensor.requires_grad:
                total = total + (tensor.double() * weights(tensor.shape, i)).sum()
        if not total.requires_grad:
            raise LawError("nothing in the output depends on the input, the parameters or the state")
        found = torch.autograd.grad(total, list(sources.values()), allow_unused=True)
    results = {name: tensor.detach() for name, tensor in results.items()}
    for (name, source), gradient in zip(sources.items(), found, strict=True):
        results[name] = torch.zeros_like(source) if gradient is None else gradient
    return Outcome(results)


def weights(shape: Sequence[int], seed: int) -> Tensor:
    """The fixed random weights by which outputs enter the scalar that is differentiated."""
    return torch.randn(tuple(shape), dtype=torch.float64, generator=torch.Generator().manual_seed(1000 + seed))


def expect_equal(got: Outcome, expected: Outcome, tolerance: float) -> None:
    """Raise a :class:`LawError` that names the tensor, the largest error, and for time-like tensors the first index."""
    if got.tensors.keys() != expected.tensors.keys():
        raise LawError(f"different results: {sorted(got.tensors.keys() ^ expected.tensors.keys())} on one side only")
    wrong: dict[str, LawError] = {}
    for name, reference in expected.tensors.items():
        try:
            expect_close(name, got.tensors[name], reference, tolerance)
        except LawError as error:
            wrong[name] = error
    if wrong:
        first, *others = wrong
        raise LawError(f"{wrong[first]}{'; also wrong: ' + ', '.join(others) if others else ''}")


def expect_close(name: str, got: Tensor, expected: Tensor, tolerance: float) -> None:
    """One tensor of :func:`expect_equal`. A NaN is an error of its own; equal integers and booleans are required."""
    if got.shape != expected.shape:
        raise LawError(f"{name} has shape {tuple(got.shape)}, expected {tuple(expected.shape)}")
    if got.numel() == 0:
        return
    if not expected.is_floating_point() and not expected.is_complex():
        if not torch.equal(got, expected):
            raise LawError(f"{name} differs: {got.tolist()} instead of {expected.tolist()}")
        return
    wide = torch.complex128 if expected.is_complex() else torch.float64
    got, expected = got.to(wide), expected.to(wide)
    error = (got - expected).abs()
    scale = max(float(expected.abs().max()), 0.1)
    # Written so that a NaN on either side counts as wrong.
    wrong = ~(error <= tolerance * scale)
    if bool(wrong.any()):
        where = "" if name.startswith("gradient of") and name != "gradient of the input" else _first_time(name, wrong)
        nan = int(got.isnan().sum())
        size = f"{nan} of {got.numel()} values are NaN" if nan else f"largest error {float(error.max()):.3e}"
        raise LawError(f"{name}: {size}, allowed {tolerance:.1e} of {scale:.3g}{where}")


def expect_identical(name: str, got: Tensor, expected: Tensor) -> None:
    """The same bits (so NaN equals NaN of the same payload, and -0.0 differs from 0.0)."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        raise LawError(f"{name}: {got.dtype}{list(got.shape)} instead of {expected.dtype}{list(expected.shape)}")
    if got.numel() and not torch.equal(got.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8)):
        error = (got.double() - expected.double()).abs()
        raise LawError(f"{name} is not bit-identical: largest error {float(error.max()):.3e}{_first_time(name, got != expected)}")


def _first_time(name: str, wrong: Tensor) -> str:
    if name not in ("output", "gradient of the input") or wrong.ndim < 2:
        return ""
    times = wrong.flatten(2).any(2).any(0) if wrong.ndim > 2 else wrong.any(0)
    rows = wrong.flatten(1).any(1).nonzero().flatten().tolist()
    return f", first at time {int(times.nonzero()[0])}, in rows {rows}"


def _leaf(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.detach().clone()
    return value.requires_grad_() if value.is_floating_point() or value.is_complex() else value


def _readable(path: Sequence[Any]) -> str:
    return "".join(f".{getattr(key, 'name', getattr(key, 'key', getattr(key, 'idx', key)))}" for key in path)
