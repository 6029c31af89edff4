"""Feed-forward layers: two projections with a nonlinearity between them, gated or not."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.layers.linear import Linear
from statescan.ops.checks import check_positive
from statescan.registry import register

Activation = Literal["silu", "gelu", "gelu_tanh", "relu2"]


def activate(x: Tensor, activation: Activation) -> Tensor:
    """silu, gelu, its tanh form, or relu(x)^2."""
    if activation == "silu":
        return F.silu(x)
    if activation == "relu2":
        return torch.relu(x).square()
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


@register
class MLP(nn.Module):
    """down_proj(activation(up_proj(x)))."""

    def __init__(self, d_model: int, d_ff: int, activation: Activation = "relu2", bias: bool = False) -> None:
        super().__init__()
        check_positive(d_model=d_model, d_ff=d_ff)
        self.activation: Activation = activation
        self.up_proj = Linear(d_model, d_ff, bias=bias)
        self.down_proj = Linear(d_ff, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(activate(self.up_proj(x), self.activation))


@register
class GatedMLP(nn.Module):
    """m2 down_proj(up_proj(x) * activation(m1 gate_proj(x))): SwiGLU, and GeGLU with gelu. (m1, m2) are fixed multipliers."""

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        activation: Activation = "silu",
        bias: bool = False,
        multipliers: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        super().__init__()
        check_positive(d_model=d_model, d_ff=d_ff)
        self.activation: Activation = activation
        self.multipliers = (float(multipliers[0]), float(multipliers[1]))
        self.gate_proj = Linear(d_model, d_ff, bias=bias)
        self.up_proj = Linear(d_model, d_ff, bias=bias)
        self.down_proj = Linear(d_ff, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, down = self.multipliers
        return self.down_proj(self.up_proj(x) * activate(self.gate_proj(x) * gate, self.activation)) * down
