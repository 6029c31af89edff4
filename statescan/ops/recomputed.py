"""A kernel that saves nothing but its inputs: its backward is another kernel, or else a differentiable form that runs again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from statescan.ops import native_gate as gate


def recomputed(
    kernel: Callable[..., tuple[Tensor, ...]],
    again: Callable[..., tuple[Tensor, ...]],
    tensors: Mapping[str, Any],
    rest: Mapping[str, Any],
    backward: Callable[..., Mapping[str, Tensor | None]] | None = None,
) -> tuple[Tensor, ...]:
    """``kernel(**tensors, **rest)``. Its derivative by the tensors is that of ``again``, which takes the same.

    ``backward(cotangents, **tensors, **rest)`` gives the gradients by name, for cotangents that may be None; ``again`` is left for second
    derivatives.
    """
    if not gate.needs_gradient(*tensors.values()):
        return kernel(**tensors, **rest)
    return _Recomputed.apply(kernel, again, backward, tuple(tensors), rest, *tensors.values())  # type: ignore[no-any-return]


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernel: Any, again: Any, backward: Any, names: tuple[str, ...], rest: Any, *tensors: Tensor | None) -> Any:
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        ctx.again, ctx.kernel, ctx.names, ctx.rest = again, backward, names, rest
        return kernel(**dict(zip(names, tensors, strict=True)), **rest)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:  # type: ignore[override]
        twice = torch.is_grad_enabled()  # a second derivative will follow
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[5:]) if needed]
        given = list(ctx.saved_tensors)
        if ctx.kernel is not None and not twice:
            found = ctx.kernel(cotangents, **dict(zip(ctx.names, given, strict=True)), **ctx.rest)
            return None, None, None, None, None, *(found[name] if i in wanted else None for i, name in enumerate(ctx.names))
        with torch.enable_grad():
            for i in wanted:  # leaves of their own: one input may be made from another
                given[i] = given[i].view_as(given[i]) if twice else given[i].detach().requires_grad_()
            outputs = ctx.again(**dict(zip(ctx.names, given, strict=True)), **ctx.rest)
        # Outputs that nothing wanted leads to have no derivative: the last values, if only keys are wanted.
        moving = [i for i, output in enumerate(outputs) if output.requires_grad and cotangents[i] is not None]
        found = torch.autograd.grad(
            [outputs[i] for i in moving], [given[i] for i in wanted], [cotangents[i] for i in moving], create_graph=twice, allow_unused=True
        )
        gradients = dict(zip(wanted, found, strict=True))
        return None, None, None, None, None, *(gradients.get(i) for i in range(len(given)))
