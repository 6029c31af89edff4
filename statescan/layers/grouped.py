"""Several Linear layers of one shape, side by side in one tensor."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from statescan.ops.checks import state_dtype
from statescan.ops.products import linear
from statescan.parameters import Dynamic


class GroupedLinear(Dynamic):
    """K Linears at once: (..., K, in) -> (..., K, out), y[k] = weight[k] x[k] + bias[k]; an input (..., 1, in) is shared by all K.

    The bias, where there is one, is that of a step size: it stays in float32 and is added there.
    """

    dynamics = ("bias",)

    def __init__(self, groups: int, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(groups, out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(groups, out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # the meta device knows no autocast
        if self.bias is None or (x.dtype == self.weight.dtype == self.bias.dtype and not autocast):
            return self.product(x, self.bias)
        product = self.product(x, None)
        return product.to(state_dtype(product)) + self.bias

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The matrix products, with a bias of the weight's own dtype."""
        if x.shape[-2] == 1:
            y = linear(x.squeeze(-2), self.weight.flatten(0, 1), None if bias is None else bias.flatten())
            return y.unflatten(-1, self.weight.shape[:2])
        biases = [None] * self.weight.shape[0] if bias is None else bias.unbind()
        return torch.stack([linear(x[..., k, :], w, biases[k]) for k, w in enumerate(self.weight.unbind())], dim=-2)

    def extra_repr(self) -> str:
        groups, out_features, in_features = self.weight.shape
        return f"groups={groups}, in_features={in_features}, out_features={out_features}, bias={self.bias is not None}"


class BlockLinear(nn.Module):
    """A block-diagonal Linear without bias: each of ``blocks`` equal parts of the width maps to itself, (..., D) -> (..., D)."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        if blocks < 1 or width % blocks:
            raise ValueError(f"blocks must divide the width; got {blocks} and {width}")
        size = width // blocks
        bound = 1 / math.sqrt(size)
        self.weight = nn.Parameter(torch.empty(blocks, size, size).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("...bi,boi->...bo", x.unflatten(-1, (self.weight.shape[0], -1)), self.weight).flatten(-2)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0] * self.weight.shape[1]}, blocks={self.weight.shape[0]}"
