"""What a model costs: parameters, state bytes a sequence, floating-point operations a token.

FLOPs count a multiply-add as two. They are counted on the meta device, so a model of any size takes no memory: matrix products by
``torch.utils.flop_counter``, and the ops of this library by the formulas of :data:`OPS`, which count what the mathematics needs, whatever
implementation runs. Norms, activations and other elementwise work are left out: they cost memory traffic, not arithmetic.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from statescan import state as states
from statescan.ops import dispatch


def _convolution(a: dict[str, Any]) -> int:
    """Two a tap."""
    return 2 * a["x"].numel() * a["weight"].shape[1]


def _selective_scan(a: dict[str, Any]) -> int:
    """For each of the B L E N states: delta A, decay times h, (delta x) B, the sum, C h and its sum; D x a channel; the steps' product."""
    weight = a["delta_weight"]
    rank = 0 if weight is None else weight.shape[1]
    return (6 * a["A"].shape[1] + 2 * (a["D"] is not None) + 2 * rank) * a["x"].numel()


def _ssd(a: dict[str, Any]) -> int:
    """The recurrence's: for each of the B L H P N states decay times h, (delta x) B, the sum, C h and its sum; and D x."""
    return 5 * a["x"].numel() * a["B"].shape[-1] + 2 * a["x"].numel() * (a["D"] is not None)


def _diagonal_scan(a: dict[str, Any]) -> int:
    """One multiply-add; four times as many real operations, when complex."""
    return a["b"].numel() * (8 if a["b"].is_complex() else 2)


OPS: dict[str, Callable[[dict[str, Any]], int]] = {
    "causal_conv1d": _convolution,
    "selective_scan": _selective_scan,
    "ssd": _ssd,
    "diagonal_scan": _diagonal_scan,
}
"""Op -> FLOPs of a call, from its checked arguments."""


@dataclass(frozen=True)
class Cost:
    """FLOPs are those of the forward pass; a training step takes about three times as many."""

    parameters: int
    parameter_bytes: int
    state_bytes: int | None
    """Of one sequence; None for a model without a state."""
    flops: int
    """Of one token, or of one image."""
    per: str

    def __str__(self) -> str:
        state = "none" if self.state_bytes is None else f"{self.state_bytes:,} bytes a sequence"
        return f"{self.parameters:,} parameters ({self.parameter_bytes / 2**20:,.1f} MiB), state {state}, {self.flops:,} FLOPs {self.per}"


def cost(model: nn.Module, *, width: int | None = None, length: int = 64, image: tuple[int, int, int] = (3, 224, 224)) -> Cost:
    """Count a model of token ids (``vocab_size``), of images (``num_classes``), or a layer of inputs ``width`` wide.

    FLOPs a token are the mean over a sequence of ``length``: they do not depend on it for scans, and do for attention.
    """
    parameters = list(model.parameters())
    bare = {id(t): torch.empty_like(t, device="meta") for t in model.buffers()}
    bare |= {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in parameters}
    net = copy.deepcopy(model, bare).eval()  # a copy without its numbers
    if isinstance(getattr(net, "vocab_size", None), int):
        x, tokens, per = torch.zeros(1, length, dtype=torch.long, device="meta"), length, "a token"
    elif width is not None:
        x, tokens, per = torch.zeros(1, length, width, device="meta"), length, "a position"
    elif hasattr(net, "num_classes"):
        x, tokens, per = torch.zeros(1, *image, device="meta"), 1, f"an image of {image[1]} x {image[2]}"
    else:
        raise ValueError(f"{type(model).__name__} has neither vocab_size nor num_classes: give the width of its inputs")
    state = model.init_state(1) if hasattr(model, "init_state") else None  # type: ignore[operator]
    return Cost(
        sum(p.numel() for p in parameters),
        sum(p.numel() * p.element_size() for p in parameters),
        None if state is None else states.nbytes(state),
        flops(net, x) // tokens,
        per,
    )


def flops(net: nn.Module, x: Tensor) -> int:
    """Of one forward call."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter, _scans() as scans:
        net(x)
    return counter.get_total_flops() + sum(scans)


@contextlib.contextmanager
def _scans() -> Iterator[list[int]]:
    """Inside, an op adds its formula to the list and returns empty results: its inner products are not counted as well."""
    counts: list[int] = []
    original = dispatch.Op.__call__

    def count(op: dispatch.Op, **arguments: Any) -> Any:
        if op.name not in OPS:
            return original(op, **arguments)
        counts.append(OPS[op.name](arguments))
        return _empty(op.name, arguments)

    dispatch.Op.__call__ = count  # type: ignore[method-assign, assignment]
    try:
        yield counts
    finally:
        dispatch.Op.__call__ = original  # type: ignore[method-assign]


def _empty(op: str, a: dict[str, Any]) -> tuple[Tensor | None, ...]:
    """(y, last[, states]) as the implementations return them."""
    y = torch.empty_like(a["b" if op == "diagonal_scan" else "x"])
    return (y, a["state"], None) if op == "selective_scan" else (y, a["state"])
