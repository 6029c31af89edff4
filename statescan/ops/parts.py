"""A split along the last axis, whose backward pass puts the parts' gradients together in one buffer of :mod:`statescan.ops.pages`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from statescan.ops import native_gate as gate
from statescan.ops import pages


def split(x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """``x.split(sizes, dim=-1)``: views."""
    if not (x.is_cpu and gate.plain(x) and gate.needs_gradient(x)) or gate.transformed():
        return x.split(list(sizes), dim=-1)
    return _Split.apply(x, sizes)  # type: ignore[no-any-return]


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
        ctx.shape, ctx.sizes = x.shape, sizes
        ctx.set_materialize_grads(False)
        return x.split(list(sizes), dim=-1)

    @staticmethod
    def backward(ctx: Any, *parts: Tensor | None) -> tuple[Tensor | None, None]:  # type: ignore[override]
        given = next((part for part in parts if part is not None), None)
        if given is None:
            return None, None
        whole = [given.new_zeros(*given.shape[:-1], size) if part is None else part for part, size in zip(parts, ctx.sizes, strict=True)]
        if torch.is_grad_enabled() or not gate.in_memory(*parts):
            return torch.cat(whole, dim=-1), None
        return torch.cat(whole, dim=-1, out=pages.empty(ctx.shape, dtype=given.dtype)), None
