"""A function of rows, a few rows at a time: the memory of the result and of one block, which the backward pass makes again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Rows = Callable[..., Tensor]


def in_blocks(function: Rows, size: int, *tensors: Tensor) -> Tensor:
    """``function(*tensors)``, whose rows are each made from the same row of every tensor, ``size`` of them at a time.

    Under torch.func, which wants to see every operation, and in a second derivative all rows are one block.
    """
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return function(*tensors)
    out: Tensor = _Blocks.apply(function, max(1, size), *tensors)
    return out


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(function: Rows, size: int, *tensors: Tensor) -> Tensor:
        out: Tensor | None = None
        for start in range(0, tensors[0].shape[0], size):
            block = function(*(t[start : start + size] for t in tensors))
            out = block.new_empty(tensors[0].shape[0], *block.shape[1:]) if out is None else out
            out[start : start + size] = block
        return function(*tensors) if out is None else out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.function, ctx.size = inputs[:2]
        ctx.save_for_backward(*inputs[2:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        tensors = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody wants a second derivative
            moving = [t for t in tensors if t.requires_grad]
            found = iter(torch.autograd.grad(ctx.function(*tensors), moving, grad, create_graph=True, materialize_grads=True))
            return None, None, *(next(found) if t.requires_grad else None for t in tensors)
        blocks = []
        for g, *parts in zip(*(t.split(ctx.size) for t in (grad, *tensors)), strict=True):
            leaves = [part.detach().requires_grad_() for part in parts]
            with torch.enable_grad():
                out = ctx.function(*leaves)
            blocks.append(torch.autograd.grad(out, leaves, g, materialize_grads=True))
        return None, None, *(torch.cat(parts) for parts in zip(*blocks, strict=True))
