"""Parameters that need care: dynamics stay in float32 and out of weight decay, and the module itself says which they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Dynamic(nn.Module):
    """A module some of whose own parameters govern a recurrence (``A_log``, ``dt_bias``, ``D`` ...).

    Those named in :attr:`dynamics` are never stored below float32: ``.to(torch.bfloat16)`` moves them and keeps their values,
    while ``.double()`` converts them like any other. They receive no weight decay.
    """

    dynamics: ClassVar[tuple[str, ...]] = ()
    """Names of this module's own parameters and buffers that stay in float32 and receive no weight decay."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Dynamic:
        kept = set()
        for name in self.dynamics:
            tensor = getattr(self, name)
            if tensor is not None:
                kept |= {id(tensor), id(tensor.grad)} - {id(None)}

        def keep_precision(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            if id(tensor) in kept and new.is_floating_point() and torch.finfo(new.dtype).bits < 32:
                return tensor.to(device=new.device)
            return new

        super()._apply(keep_precision, recurse)
        return self


def parameter_groups(module: nn.Module, *, weight_decay: float = 0.1, lr: float | None = None) -> list[dict[str, Any]]:
    """Optimiser groups: matrices decay; dynamics, norms, biases and embeddings' one-dimensional companions do not.

    Returns two dictionaries (``name``, ``params``, ``weight_decay`` and, when given, ``lr``). A shared (tied) tensor appears once.
    A parameter that does not require a gradient is left out.
    """
    undecayed = {
        id(getattr(child, name))
        for child in module.modules()
        if isinstance(child, Dynamic)
        for name in child.dynamics
        if getattr(child, name) is not None
    }
    groups: dict[str, list[nn.Parameter]] = {"decay": [], "no_decay": []}
    for parameter in module.parameters():
        if parameter.requires_grad:
            groups["no_decay" if parameter.ndim < 2 or id(parameter) in undecayed else "decay"].append(parameter)
    decays = {"decay": weight_decay, "no_decay": 0.0}
    extra = {} if lr is None else {"lr": lr}
    return [{"name": name, "params": params, "weight_decay": decays[name], **extra} for name, params in groups.items() if params]
