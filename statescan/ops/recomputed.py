"""A kernel that saves little but its inputs, and its backward kernel; a differentiable form runs again where that will not do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from statescan.ops import native_gate as gate


def recomputed(
    kernel: Callable[..., tuple[Tensor, ...]],
    backward: Callable[..., Mapping[str, Tensor | None]],
    again: Callable[..., tuple[Tensor, ...]],
    tensors: Mapping[str, Any],
    rest: Mapping[str, Any],
    kept: int = 0,
) -> tuple[Tensor, ...]:
    """``kernel(**tensors, **rest)``, differentiable by the tensors.

    ``backward(cotangents, **tensors, **rest)`` gives the gradients by name, for cotangents that may be None. The last ``kept`` outputs of
    the kernel, where a gradient is asked for, are for it alone: it takes them as ``kept=``. ``again``, which computes the same from the
    same arguments, is left for second derivatives and for several cotangents side by side.
    """
    if not gate.needs_gradient(*tensors.values()):
        return kernel(**tensors, **rest)
    return _Recomputed.apply((kernel, backward, again), kept, tuple(tensors), rest, *tensors.values())  # type: ignore[no-any-return]


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, functions: Any, kept: int, names: tuple[str, ...], rest: Any, *tensors: Tensor | None) -> Any:
        kernel, ctx.kernel, ctx.again = functions
        outputs = kernel(**dict(zip(names, tensors, strict=True)), **rest)
        given = len(outputs) - kept
        ctx.save_for_backward(*tensors, *outputs[given:])
        ctx.set_materialize_grads(False)
        ctx.names, ctx.rest = names, rest
        return outputs[:given]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:  # type: ignore[override]
        twice = torch.is_grad_enabled()  # a second derivative will follow
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[4:]) if needed]
        saved = ctx.saved_tensors  # once: checkpointing unpacks them a single time
        given, kept = list(saved[: len(ctx.names)]), saved[len(ctx.names) :]
        if not twice and gate.in_memory(*cotangents):
            more = {"kept": kept} if kept else {}
            found = ctx.kernel(cotangents, **dict(zip(ctx.names, given, strict=True)), **more, **ctx.rest)
            return None, None, None, None, *(found[name] if i in wanted else None for i, name in enumerate(ctx.names))
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
        return None, None, None, None, *(gradients.get(i) for i in range(len(given)))
