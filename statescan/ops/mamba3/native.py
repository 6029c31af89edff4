"""Mamba-3 in C++: a loop over positions for each head, which turns keys and queries, writes, reads and gates inside the cache.

What reaches memory are the projections, once, and the output. Nothing is saved but the inputs: the backward kernel makes the states again,
and goes back over blocks of 64 writes, as small matrices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.ops import native_gate as gate
from statescan.ops import pages
from statescan.ops.mamba3 import op
from statescan.ops.mamba3.portable import portable
from statescan.ops.native_gate import view
from statescan.ops.recomputed import recomputed

MAX_RANK = 16
"""Writes a position: a block of 16 of them stays in the cache."""

_KEYS, _PER_HEAD = ("q", "k"), ("v", "z", "log_decay", "delta", "mix")
_PARAMETERS = ("q_bias", "k_bias", "D", "v_weight", "z_weight", "y_weight")
_STATE = ("angle", "ssm", "last_k", "last_v")
_ORDER = ("q", "k", "v", "z", "log_decay", "delta", "mix", "speed", *_PARAMETERS, *_STATE)
"""As the kernels take them, and their gradients."""
_TURNED = ("q", "k", "q_bias", "k_bias", "ssm", "last_k")
"""Whose last axis are the states, in pairs or in halves."""


def _refuse(reset: Tensor | None, mask: Tensor | None, layout: str, **tensors: Tensor | None) -> str | None:
    if not gate.plain(*tensors.values(), reset, mask):
        return "a compiler traces, operations are watched, or a tensor is of a subclass: portable is made of parts that all of these know"
    q = tensors["q"]
    if q is not None and q.shape[2] > MAX_RANK:
        return f"a position has {q.shape[2]} writes; the native kernel takes {MAX_RANK}"
    return gate.refuse((torch.float32, torch.bfloat16), **{k: v for k, v in tensors.items() if k not in _STATE}) or gate.refuse(
        (torch.float32,), **{k: v for k, v in tensors.items() if k in _STATE}
    )


def _halves(x: Tensor, layout: str) -> Tensor:
    """States (..., N) as the kernels take them: the first of each pair, then the second."""
    return gate.rows(x if layout == "halves" else x.unflatten(-1, (-1, 2)).mT.flatten(-2))


def _back(x: Tensor, layout: str) -> Tensor:
    """The inverse of :func:`_halves`."""
    return x if layout == "halves" else x.unflatten(-1, (2, -1)).mT.flatten(-2)


def _given(layout: str, tensors: dict[str, Tensor | None]) -> list[Tensor | None]:
    """In the kernels' order; what they read as float32 in that."""
    found: list[Tensor | None] = []
    for name in _ORDER:
        x = tensors[name]
        if x is not None and name not in ("q", "k", "v", "z"):
            x = x.float()
        found.append(None if x is None else _halves(x, layout) if name in _TURNED else gate.rows(x))
    return found


def _sizes(work: int, q: Tensor, v: Tensor, speed: Tensor) -> tuple[int, tuple[int, ...]]:
    """Threads and sizes; ``work``: operations a number of the state, write and position."""
    batch, length, rank, groups, keys = q.shape
    heads, width = v.shape[2:]
    return gate.threads(work * q.numel() // groups * heads * width), (batch, length, rank, heads, groups, keys, width, speed.shape[2])


def _forward(reset: Tensor | None, mask: Tensor | None, layout: str, **tensors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    assert gate.module is not None
    q, v = tensors["q"], tensors["v"]
    inputs = _given(layout, dict(tensors))
    y = pages.empty(v.shape if tensors["z"] is not None else (*q.shape[:3], *v.shape[2:]), dtype=v.dtype)
    angle, ssm, last_k, last_v = (pages.empty(tensors[name].shape) for name in _STATE)
    if len(v):
        outputs = (y, angle, ssm, last_k, last_v)
        gate.module.mamba3(*_sizes(4, q, v, tensors["speed"]), *(view(x) for x in (*inputs, reset, mask, *outputs)))
    return y, angle, _back(ssm, layout), _back(last_k, layout), last_v


def _backward(
    cotangents: tuple[Tensor | None, ...], reset: Tensor | None, mask: Tensor | None, layout: str, **tensors: Tensor
) -> dict[str, Tensor | None]:
    assert gate.module is not None
    q, v, speed = tensors["q"], tensors["v"], tensors["speed"]
    (batch, length, rank, groups, keys), heads = q.shape, v.shape[2]
    inputs = _given(layout, dict(tensors))
    gy, *last = cotangents
    if gy is None:
        gy = v.new_zeros(v.shape if tensors["z"] is not None else (batch, length, rank, *v.shape[2:]))
    last = [x if x is None else _halves(x, layout) if name in _TURNED else gate.rows(x) for name, x in zip(_STATE, last, strict=True)]
    # By head what heads share, by row of the batch what rows share: to be added up.
    parts = {name: None if tensors[name] is None else pages.empty(tensors[name].shape) for name in (*_PER_HEAD, *_STATE)}
    parts |= {name: None if tensors[name] is None else pages.empty(batch, *tensors[name].shape) for name in _PARAMETERS}
    parts |= {name: pages.empty(batch, length, rank, heads, keys) for name in _KEYS} | {
        "speed": pages.empty(batch, length, heads, speed.shape[2])
    }
    if batch:
        outputs = (parts[name] for name in _ORDER)
        gate.module.mamba3_backward(*_sizes(14, q, v, speed), *(view(x) for x in (*inputs, reset, mask, gate.rows(gy), *last, *outputs)))
    found: dict[str, Tensor | None] = {}
    for name, x in parts.items():
        if x is not None:
            x = (
                x.unflatten(3, (groups, -1)).sum(4)
                if name in _KEYS
                else x.sum(2)
                if name == "speed"
                else x.sum(0)
                if name in _PARAMETERS
                else x
            )
            x = (_back(x, layout) if name in _TURNED else x).to(tensors[name].dtype)
        found[name] = x
    return found


@op.implementation("native", _refuse)
def native(reset: Tensor | None, mask: Tensor | None, layout: str, **tensors: Tensor | None) -> tuple[Tensor, ...]:
    """y (B, L, H, P) or o (B, L, R, H, P), and the last angle, S, k and v."""
    return recomputed(_forward, _backward, portable, tensors, {"reset": reset, "mask": mask, "layout": layout})
