"""Mamba-3 in C++: a loop over positions for each head, which turns keys and queries, writes, reads and gates inside the cache.

What reaches memory are the projections, once, and the output. There is no backward kernel: nothing is saved but the inputs, and the
backward pass runs ``portable`` again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.ops import native_gate as gate
from statescan.ops.mamba3 import op
from statescan.ops.mamba3.portable import portable
from statescan.ops.native_gate import view
from statescan.ops.recomputed import recomputed

MAX_RANK = 16
"""Writes a position: a block of 16 of them stays in the cache."""


def _refuse(reset: Tensor | None, mask: Tensor | None, layout: str, **tensors: Tensor | None) -> str | None:
    if not gate.plain(*tensors.values(), reset, mask):
        return "a compiler traces, operations are watched, or a tensor is of a subclass: portable is made of parts that all of these know"
    q = tensors["q"]
    if q is not None and q.shape[2] > MAX_RANK:
        return f"a position has {q.shape[2]} writes; the native kernel takes {MAX_RANK}"
    return gate.refuse((torch.float32, torch.bfloat16), **{k: v for k, v in tensors.items() if k not in _STATE}) or gate.refuse(
        (torch.float32,), **{k: v for k, v in tensors.items() if k in _STATE}
    )


_STATE = ("angle", "ssm", "last_k", "last_v")


def _halves(x: Tensor, layout: str) -> Tensor:
    """States (..., N) as the kernel takes them: the first of each pair, then the second."""
    return gate.rows(x if layout == "halves" else x.unflatten(-1, (-1, 2)).mT.flatten(-2))


def _forward(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, delta: Tensor, mix: Tensor, speed: Tensor, q_bias: Tensor, k_bias: Tensor,
    D: Tensor, v_weight: Tensor | None, z: Tensor | None, z_weight: Tensor | None, y_weight: Tensor | None, angle: Tensor, ssm: Tensor,
    last_k: Tensor, last_v: Tensor, reset: Tensor | None, mask: Tensor | None, layout: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    assert gate.module is not None
    batch, length, rank, groups, keys = q.shape
    heads, width = v.shape[2:]
    sizes = (batch, length, rank, heads, groups, keys, width, speed.shape[2])
    inputs = [_halves(q, layout), _halves(k, layout), gate.rows(v), gate.rows_or_none(z)]
    inputs += [gate.rows(x.float()) for x in (log_decay, delta, mix, speed)]
    inputs += [_halves(x.float(), layout) for x in (q_bias, k_bias)] + [gate.rows(D.float())]
    inputs += [None if x is None else gate.rows(x.float()) for x in (v_weight, z_weight, y_weight)]
    inputs += [gate.rows(angle), _halves(ssm, layout), _halves(last_k, layout), gate.rows(last_v)]
    y = torch.empty((batch, length, heads, width) if z is not None else (batch, length, rank, heads, width), dtype=v.dtype)
    last = [torch.empty(x.shape) for x in (angle, ssm, last_k, last_v)]
    if batch:
        gate.module.mamba3(
            gate.threads(4 * length * batch * rank * heads * keys * width), sizes, *(view(x) for x in inputs), view(reset), view(mask),
            view(y), *(view(x) for x in last),
        )  # fmt: skip
    if layout == "pairs":
        last[1], last[2] = (x.unflatten(-1, (2, -1)).mT.flatten(-2) for x in last[1:3])
    return y, last[0], last[1], last[2], last[3]


@op.implementation("native", _refuse)
def native(reset: Tensor | None, mask: Tensor | None, layout: str, **tensors: Tensor | None) -> tuple[Tensor, ...]:
    """y (B, L, H, P) or o (B, L, R, H, P), and the last angle, S, k and v."""
    return recomputed(_forward, portable, tensors, {"reset": reset, "mask": mask, "layout": layout})
