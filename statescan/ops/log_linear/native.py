"""Log-linear attention in C++: blocks of 64 positions for each head, with the levels of the past in the cache.

Nothing is saved but the inputs: the backward kernel goes through the call once more, and keeps the levels before each block of a few heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from statescan.ops import native_gate as gate
from statescan.ops import pages
from statescan.ops.log_linear import op
from statescan.ops.log_linear.portable import portable
from statescan.ops.native_gate import view
from statescan.ops.recomputed import recomputed

MAX_LEVELS = 64
MAX_STATE = 1 << 22
"""Numbers of a head's levels: a thread holds those of up to four heads."""


def _refuse(
    scale: float, position: Tensor, before: Tensor, after: Tensor, reset: Tensor | None, mask: Tensor | None, state: Tensor,
    **tensors: Tensor | None,
) -> str | None:  # fmt: skip
    if not gate.plain(*tensors.values(), state, before, reset, mask):
        return "a compiler traces, operations are watched, or a tensor is of a subclass: portable is made of parts that all of these know"
    levels, keys, width = state.shape[2:]
    if levels > MAX_LEVELS or levels * keys * width > MAX_STATE:
        return f"a head has {levels} levels of {keys} x {width}; the native kernel takes {MAX_LEVELS} levels and {MAX_STATE} numbers in all"
    return gate.refuse((torch.float32, torch.bfloat16), **tensors) or gate.refuse((torch.float32,), state=state)


def _call(q: Tensor, v: Tensor, state: Tensor, scale: float) -> tuple[Any, ...]:
    """Threads, scale and sizes, as the binding takes them."""
    batch, length, groups, keys = q.shape
    heads, width = v.shape[2:]
    return gate.threads(4 * v.numel() * keys), scale, (batch, length, heads, groups, keys, width, state.shape[2])


def _forward(
    q: Tensor, k: Tensor, v: Tensor, level_scale: Tensor, log_decay: Tensor, beta: Tensor | None, state: Tensor, before: Tensor,
    reset: Tensor | None, mask: Tensor | None, scale: float, **_: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    assert gate.module is not None
    q, k, v, level_scale, state = (gate.rows(x) for x in (q, k, v, level_scale, state))
    y, last, before = pages.empty(v.shape, dtype=v.dtype), pages.empty(state.shape), before.long().contiguous()
    if len(v):
        gate.module.log_linear(
            *_call(q, v, state, scale), view(q), view(k), view(v), view(level_scale), view(log_decay), view(beta), view(state),
            before.data_ptr(), view(reset), view(mask), view(y), view(last),
        )  # fmt: skip
    return y, last


def _backward(
    cotangents: tuple[Tensor | None, Tensor | None], q: Tensor, k: Tensor, v: Tensor, level_scale: Tensor, log_decay: Tensor,
    beta: Tensor | None, state: Tensor, before: Tensor, reset: Tensor | None, mask: Tensor | None, scale: float, **_: Any,
) -> dict[str, Tensor | None]:  # fmt: skip
    """Gradients by name. That of the state only where it is asked for: levels that hold nothing have one too."""
    assert gate.module is not None
    wanted = state.requires_grad
    q, k, v, level_scale, state = (gate.rows(x) for x in (q, k, v, level_scale, state))
    gy = torch.zeros(v.shape, dtype=v.dtype) if cotangents[0] is None else gate.rows(cotangents[0])
    glast, before = gate.rows_or_none(cotangents[1]), before.long().contiguous()
    inputs = {"q": q, "k": k, "v": v, "level_scale": level_scale, "log_decay": log_decay, "beta": beta, "state": state if wanted else None}
    found = {name: gate.like(tensor) for name, tensor in inputs.items()}
    batch, length, groups, keys = q.shape
    tiles = (v.shape[2] // groups + gate.HEADS - 1) // gate.HEADS
    parts = [pages.empty(batch * groups * tiles, length, keys) if tiles > 1 else None for _ in "qk"]
    if batch:
        gate.module.log_linear_backward(
            *_call(q, v, state, scale), view(q), view(k), view(v), view(level_scale), view(log_decay), view(beta), view(state),
            before.data_ptr(), view(reset), view(mask), view(gy), view(glast), *map(view, found.values()), *map(view, parts),
        )  # fmt: skip
    return found


@op.implementation("native", _refuse)
def native(
    scale: float, position: Tensor, before: Tensor, after: Tensor, reset: Tensor | None, mask: Tensor | None, **tensors: Tensor | None
) -> tuple[Tensor, ...]:
    """y (B, L, H, V) and the last state (B, H, levels, K, V)."""
    rest = {"scale": scale, "position": position, "before": before, "after": after, "reset": reset, "mask": mask}
    return recomputed(_forward, _backward, portable, tensors, rest)
