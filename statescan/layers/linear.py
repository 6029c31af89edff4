"""The Linear of every layer here."""

from __future__ import annotations

from typing import TypeGuard

from torch import Tensor, nn

from statescan.ops import products


class Linear(nn.Linear):
    """``nn.Linear`` whose large float32 products, forwards and backwards, are made by the faster of torch's library and ours
    (:func:`statescan.ops.products.linear`). Parameters, initial values and names are those of ``nn.Linear``.
    """

    def forward(self, input: Tensor) -> Tensor:
        return products.linear(input, self.weight, self.bias)


def is_plain(module: object) -> TypeGuard[nn.Linear]:
    """Whether this is exactly a Linear, torch's or ours, and of no class of its own."""
    return type(module) in (nn.Linear, Linear)
