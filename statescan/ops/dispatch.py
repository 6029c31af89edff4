"""Which implementation of an op runs, and why: chosen from shapes, dtypes and devices alone, never from values or lucky imports.

Every op registers ``reference`` (a plain loop that is obviously right) and ``portable`` (parallel torch, any device), and may register
``native`` (C++ on a CPU) and ``triton`` (GPU). The fastest one that does not refuse runs. A refusal is a sentence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from statescan.ops import frugal
from statescan.registry import nearest

PREFERENCE = ("triton", "native", "mamba_ssm", "causal_conv1d", "fla", "portable", "reference")
"""Fastest first. Between our kernels and the slower ones stand those of other packages, under the packages' names."""

ops: dict[str, Op] = {}


class Choice(NamedTuple):
    """One record of ``statescan.explain()``."""

    op: str
    ran: str
    why: str
    refused: dict[str, str]
    inputs: str

    def __str__(self) -> str:
        refusals = "".join(f"\n    {name} refused: {reason}" for name, reason in self.refused.items())
        return f"{self.op}({self.inputs}) ran {self.ran}: {self.why}{refusals}"


@dataclass(frozen=True)
class Implementation:
    """A function with the op's checked arguments, and ``refuse(arguments) -> reason or None``."""

    run: Callable[..., Any]
    refuse: Callable[..., str | None]


class Op:
    """An op: a name and its implementations. ``tolerance[dtype]`` is how far a result may lie from the float64 reference.

    ``torch_products``: its fast implementations leave large matrix products to torch, whose bits may depend on the number of threads.
    ``cheap``: its results are rather computed again in the backward pass than kept for it.
    """

    def __init__(self, name: str, *, tolerance: dict[torch.dtype, float], torch_products: bool = False, cheap: bool = False) -> None:
        self.name = name
        self.tolerance = tolerance
        self.torch_products = torch_products
        self.cheap = cheap
        self.implementations: dict[str, Implementation] = {}
        ops[name] = self

    def implementation(
        self, name: str, refuse: Callable[..., str | None] = lambda **_: None
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorator: register an implementation under one of the names in ``PREFERENCE``."""
        assert name in PREFERENCE, name

        def add(fn: Callable[..., Any]) -> Callable[..., Any]:
            self.implementations[name] = Implementation(fn, refuse)
            return fn

        return add

    def available(self, **arguments: Any) -> dict[str, str | None]:
        """Implementation -> None if it would run on these arguments, else its reason."""
        return {name: self.implementations[name].refuse(**arguments) for name in PREFERENCE if name in self.implementations}

    def __call__(self, **arguments: Any) -> Any:
        """Run the fastest implementation that accepts, or the forced one. Arguments have been checked and completed by the op."""
        forced = _forced.get(self.name, _forced.get("*"))
        if forced is not None:
            if forced not in self.implementations:
                raise ValueError(f"{self.name} has no implementation {forced!r}{nearest(forced, self.implementations)}")
            reason = self.implementations[forced].refuse(**arguments)
            if reason is not None:
                raise ValueError(f"{self.name}: the forced implementation {forced!r} refuses: {reason}")
            record(self.name, forced, "forced", {}, arguments)
            return self._run(self.implementations[forced], arguments)
        refused: dict[str, str] = {}
        for name in PREFERENCE:
            implementation = self.implementations.get(name)
            if implementation is None:
                continue
            reason = implementation.refuse(**arguments)
            if reason is None:
                record(self.name, name, "the fastest that accepts", refused, arguments)
                return self._run(implementation, arguments)
            refused[name] = reason
        raise ValueError(f"no implementation of {self.name} accepts these inputs: {refused}")

    def _run(self, implementation: Implementation, arguments: dict[str, Any]) -> Any:
        result = implementation.run(**arguments)
        if self.cheap:
            frugal.remember(implementation.run, arguments, result)
        return result


_forced: dict[str, str] = {}
_history: deque[tuple[str, str, str, dict[str, str], list[Any]]] = deque(maxlen=64)


@contextmanager
def implementation(name: str | None = None, **by_op: str) -> Iterator[None]:
    """Force an implementation inside the block, for all ops or by op: ``implementation("reference")``, ``implementation(ssd="portable")``.

    The setting belongs to the process, not to a thread. A forced implementation that refuses raises.
    """
    chosen = dict(by_op) if name is None else {"*": name, **by_op}
    for op, choice in chosen.items():
        if op != "*" and op not in ops:
            raise ValueError(f"there is no op {op!r}{nearest(op, ops)}")
        if choice not in PREFERENCE:
            raise ValueError(f"there is no implementation {choice!r}{nearest(choice, PREFERENCE)}")
    before = dict(_forced)
    _forced.update(chosen)
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)


def forced() -> dict[str, str]:
    """What is forced now, as keywords of :func:`implementation`: a recomputation in the backward pass runs under what the forward saw."""
    return dict(_forced)


def explain(last: int = 8) -> list[Choice]:
    """What ran in the latest calls, oldest first, and why each faster implementation did not.

    Calls traced by a compiler are not recorded.
    """
    return [Choice(op, ran, why, refused, _describe(shapes)) for op, ran, why, refused, shapes in list(_history)[-last:]]


def record(op: str, ran: str, why: str, refused: dict[str, str], arguments: dict[str, Any]) -> None:
    if torch.compiler.is_compiling():
        return
    shapes = [(k, v.dtype, v.shape) for k, v in arguments.items() if isinstance(v, torch.Tensor)]
    _history.append((op, ran, why, refused, shapes))


def _describe(shapes: list[Any]) -> str:
    return ", ".join(f"{name}: {str(dtype).removeprefix('torch.')}{list(shape)}" for name, dtype, shape in shapes)
