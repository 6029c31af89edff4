"""The mesa layer in C++: conjugate gradients for twelve positions side by side, with the block and the matrices before it in the cache.

For a backward that may follow, the inputs and the solutions are saved, (B, L, H, K) in float32: to find them again would be nearly half of
its work. It makes the matrices before each block again and solves for the gradient of q. A second derivative runs ``portable`` again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from statescan.ops import native_gate as gate
from statescan.ops import pages
from statescan.ops.mesa import op
from statescan.ops.mesa.portable import portable
from statescan.ops.native_gate import view
from statescan.ops.recomputed import recomputed

MAX_STATE = 1 << 19
"""Numbers of either matrix of a head, which a thread holds; in the backward pass once more every 64 positions."""


def _refuse(
    iterations: int, G: Tensor, S: Tensor, reset: Tensor | None, mask: Tensor | None, ridge: Tensor, **tensors: Tensor
) -> str | None:
    if not gate.plain(*tensors.values(), ridge, G, S, reset, mask):
        return "a compiler traces, operations are watched, or a tensor is of a subclass: portable is made of parts that all of these know"
    keys, width = S.shape[2:]
    if keys * max(keys, width) > MAX_STATE:
        return f"a head has {keys} key and {width} value channels; the native kernel takes matrices up to {MAX_STATE} numbers"
    return gate.refuse((torch.float32, torch.bfloat16), ridge=ridge, **tensors) or gate.refuse((torch.float32,), G=G, S=S)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, ridge: Tensor, G: Tensor, S: Tensor, iterations: int,
    reset: Tensor | None, mask: Tensor | None, keep: bool = False,
) -> tuple[Tensor, ...]:  # fmt: skip
    """y, the last G and S and, if they are to be kept, the solutions."""
    assert gate.module is not None
    batch, length, heads, keys = q.shape
    width = v.shape[-1]
    q, k, v, ridge, G, S = (gate.rows(x) for x in (q, k, v, ridge.float(), G, S))
    y, G_last, S_last = pages.empty(v.shape, dtype=v.dtype), pages.empty(G.shape), pages.empty(S.shape)
    x = pages.empty(q.shape) if keep else None
    if batch:
        gate.module.mesa(
            gate.threads(20 * q.numel() * keys), iterations, (batch, length, heads, keys, width), view(q), view(k), view(v), view(beta),
            view(log_decay), view(ridge), view(G), view(S), view(reset), view(mask), view(y), view(G_last), view(S_last),
            view(x),
        )  # fmt: skip
    return (y, G_last, S_last) if x is None else (y, G_last, S_last, x)


def _backward(
    cotangents: Sequence[Tensor | None], q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, ridge: Tensor, G: Tensor,
    S: Tensor, kept: tuple[Tensor, ...], iterations: int, reset: Tensor | None, mask: Tensor | None,
) -> dict[str, Tensor | None]:  # fmt: skip
    assert gate.module is not None
    batch, length, heads, keys = q.shape
    width = v.shape[-1]
    gy, gG_last, gS_last = (gate.rows_or_none(x) for x in cotangents)
    if gy is None:
        gy = torch.zeros(v.shape, dtype=v.dtype)
    found = {name: gate.like(x) for name, x in (("q", q), ("k", k), ("v", v), ("beta", beta), ("log_decay", log_decay))}
    g_ridge, part = torch.zeros(ridge.shape), pages.empty(batch, heads, keys)
    found |= {"ridge": g_ridge, "G": gate.like(G), "S": gate.like(S)}
    k, v, wide, G, S = (gate.rows(x) for x in (k, v, ridge.float(), G, S))
    if batch:
        gate.module.mesa_backward(
            gate.threads(20 * q.numel() * keys), iterations, (batch, length, heads, keys, width), view(k), view(v), view(beta),
            view(log_decay), view(wide), view(G), view(S), view(reset), view(mask), view(kept[0]), view(gy), view(gG_last), view(gS_last),
            *map(view, found.values()), view(part),
        )  # fmt: skip
    return found | {"ridge": g_ridge.to(ridge.dtype)}


@op.implementation("native", _refuse)
def native(iterations: int, reset: Tensor | None, mask: Tensor | None, **tensors: Tensor) -> tuple[Tensor, ...]:
    """y (B, L, H, V) and the last G and S."""
    keep = gate.needs_gradient(*tensors.values())
    rest = {"iterations": iterations, "reset": reset, "mask": mask}
    return recomputed(partial(_forward, keep=keep), _backward, portable, tensors, rest, kept=int(keep))
