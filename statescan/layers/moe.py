"""Parts of a mixture of experts: the router's product, the experts, and what the routers of a model say about balance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.layers.mlp import Activation, activate
from statescan.ops.checks import check_positive, exactly, state_dtype
from statescan.ops.products import linear

ROUTER = "router"
"""Key of the bus: a list to which every router of a call appends its :class:`RouterStatistics`."""


class Router(nn.Linear):
    """(..., D) -> logits (..., experts), in float32 whatever the storage or autocast: near a tie, rounding would choose."""

    def __init__(self, d_model: int, num_experts: int) -> None:
        super().__init__(d_model, num_experts, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        dtype = state_dtype(input)
        with exactly(input):
            return F.linear(input.to(dtype), self.weight.to(dtype))


class Experts(nn.Module):
    """Feed-forward layers of one shape, each applied to the rows that chose it. Weights are stacked, as in the checkpoints::

        expert_e(x) = down_e (activation(gate_e x) * (up_e x)),   [gate_e; up_e] = gate_up_proj[e], (2F, D)
        expert_e(x) = down_e activation(up_e x)                   without ``gated``; down_e = down_proj[e], (D, F)

    Rows are sorted by expert, and each expert is one product: nothing is dropped, and no (rows, experts, F) tensor exists. A traced graph
    cannot know how many rows choose an expert: there each one sees them all.
    """

    gate_up_proj: nn.Parameter
    up_proj: nn.Parameter

    def __init__(self, num_experts: int, d_model: int, d_ff: int, activation: Activation = "silu", gated: bool = True) -> None:
        super().__init__()
        check_positive(num_experts=num_experts, d_model=d_model, d_ff=d_ff)
        self.activation: Activation = activation
        self.gated = gated
        inner = 1 / math.sqrt(d_model)
        up = nn.Parameter(torch.empty(num_experts, 2 * d_ff if gated else d_ff, d_model).uniform_(-inner, inner))
        self.register_parameter("gate_up_proj" if gated else "up_proj", up)
        outer = 1 / math.sqrt(d_ff)
        self.down_proj = nn.Parameter(torch.empty(num_experts, d_model, d_ff).uniform_(-outer, outer))

    def forward(self, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        """Rows x (T, D), the experts of each, int64 (T, k), and their weights (T, k) -> the weighted sums (T, D)."""
        experts = list(zip((self.gate_up_proj if self.gated else self.up_proj).unbind(), self.down_proj.unbind(), strict=True))
        if torch.compiler.is_compiling():
            weights = weight.new_zeros(x.shape[0], len(experts)).scatter(1, index, weight)
            y = weights.new_zeros(x.shape)
            for e, (up, down) in enumerate(experts):
                y = y + weights[:, e : e + 1] * self._apply_one(x, up, down)
            return y.to(x.dtype)
        order = index.flatten().argsort(stable=True)
        # without values nobody knows who chose whom; the shapes and the work are the same if all chose one
        counts = [index.numel(), *[0] * (len(experts) - 1)] if index.is_meta else index.flatten().bincount(minlength=len(experts)).tolist()
        rows = x[order // index.shape[1]].split(counts)
        out = torch.cat([self._apply_one(part, *expert) for part, expert in zip(rows, experts, strict=True) if len(part)])
        return (out[order.argsort()].view(*index.shape, -1) * weight.unsqueeze(-1)).sum(1).to(x.dtype)

    def _apply_one(self, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
        h = linear(x, up)
        if self.gated:
            gate, h = h.chunk(2, dim=-1)
            h = activate(gate, self.activation) * h
        else:
            h = activate(h, self.activation)
        return linear(h, down)

    def extra_repr(self) -> str:
        experts, d_model, d_ff = self.down_proj.shape
        return f"{experts}, d_model={d_model}, d_ff={d_ff}, activation={self.activation}, gated={self.gated}"


class RouterStatistics(NamedTuple):
    """Sums over the existing positions of a call."""

    chosen: Tensor
    """(experts,): how often each was chosen."""
    scores: Tensor
    """(experts,): its scores, which sum to one at a position."""
    z: Tensor
    """Squared logsumexp of the logits."""
    positions: Tensor
    """How many positions there were."""

    @staticmethod
    def of(logits: Tensor, scores: Tensor, index: Tensor, exists: Tensor | None) -> RouterStatistics:
        """Logits and scores (T, experts), the chosen ones (T, k), and which of the T positions exist."""
        weight = logits.new_ones(logits.shape[0]) if exists is None else exists.to(logits.dtype)
        chosen = torch.zeros_like(logits).scatter(1, index, 1.0)
        z = torch.logsumexp(logits, -1).square()
        every = weight.unsqueeze(-1)  # sums, not products: autocast would round those, and counts are to be exact
        shares = scores / scores.sum(-1, keepdim=True)
        return RouterStatistics((every * chosen).sum(0), (every * shares).sum(0), (weight * z).sum(), weight.sum())


def load_balancing_loss(bus: Mapping[str, Any]) -> Tensor:
    """Mean over the routers of a call of E sum_e f_e p_e: f_e the share of positions that chose expert e, p_e its mean score.

    The number of experts a position where all are equally likely, and larger otherwise. Differentiable; the bus is the one given to the
    model's call. Fedus et al., "Switch Transformers", 2021, https://arxiv.org/abs/2101.03961.
    """
    return torch.stack([s.chosen.numel() * (s.chosen @ s.scores) / s.positions.clamp(min=1).square() for s in _statistics(bus)]).mean()


def router_z_loss(bus: Mapping[str, Any]) -> Tensor:
    """Mean squared logsumexp of the router's logits, over positions and routers.

    Zoph et al., "ST-MoE", 2022, https://arxiv.org/abs/2202.08906.
    """
    return torch.stack([s.z / s.positions.clamp(min=1) for s in _statistics(bus)]).mean()


def _statistics(bus: Mapping[str, Any]) -> list[RouterStatistics]:
    if not bus.get(ROUTER):
        raise ValueError("no router left statistics on this bus: give the model's call a bus (a dictionary), and the model an MoE layer")
    return bus[ROUTER]
