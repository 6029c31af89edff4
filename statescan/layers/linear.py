"""The Linear of every layer here."""

from __future__ import annotations

from typing import TypeGuard

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from statescan.ops import products


class Linear(nn.Linear):
    """``nn.Linear`` whose large float32 products, forwards and backwards, are made by the faster of torch's library and ours
    (:func:`statescan.ops.products.linear`). Parameters, initial values and names are those of ``nn.Linear``.
    """

    def forward(self, input: Tensor) -> Tensor:
        return products.linear(input, self.weight, self.bias)


def has_hooks(module: nn.Module) -> bool:
    """Whether the module has hooks of its own."""
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


def is_watched(module: nn.Module) -> bool:
    """Whether something sees or replaces the call, hooks of every module included: parameters must not be used in its place."""
    return has_hooks(module) or "forward" in module.__dict__ or bool(_has_any_global_hook())


def is_plain(module: object) -> TypeGuard[nn.Linear]:
    """Whether this is exactly a Linear, torch's or ours, and of no class of its own."""
    return type(module) in (nn.Linear, Linear)
