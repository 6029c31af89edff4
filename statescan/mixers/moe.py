"""Mixture of experts: a feed-forward layer that chooses its weights at each position.

Papers: Shazeer et al., "Outrageously Large Neural Networks", 2017, https://arxiv.org/abs/1701.06538; DeepSeek-AI, "DeepSeek-V3 Technical
Report", 2024, https://arxiv.org/abs/2412.19437 (sigmoid scores, a bias for the choice, groups).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from statescan.layers import MLP, GatedMLP
from statescan.layers.linear import Linear
from statescan.layers.mlp import Activation
from statescan.layers.moe import ROUTER, Experts, Router, RouterStatistics
from statescan.ops.checks import check_positive
from statescan.protocols import Bus, Stateless
from statescan.registry import register
from statescan.timeline import Timeline, hide


@register
class MoE(Stateless):
    """The k best of E feed-forward layers at each position, weighted::

        scores  = softmax(router(x)), or sigmoid(router(x))
        chosen  = top k of scores + selection_bias          of the best groups only, where there are groups
        weights = scale * scores[chosen]                    divided by their sum, with ``renormalise``
        y       = sum of weights * experts[chosen](x)  +  sigmoid(shared_gate(x)) * shared(x)

    It looks at single positions. It is a mixer so that it is told which positions exist: only those count in the statistics that it
    appends to ``bus["router"]``, from which :func:`statescan.layers.load_balancing_loss` and ``router_z_loss`` are made.

    Args:
        d_model: width D.
        num_experts: E.
        top_k: experts a position, k.
        d_ff: inner width of an expert, F.
        score: softmax over all experts, or a sigmoid for each. Softmax, chosen and renormalised, is the softmax over the chosen logits.
        renormalise: the chosen scores are divided by their sum.
        renormalise_eps: added to that sum.
        scale: of the chosen weights.
        selection_bias: a buffer of E numbers that is added for the choice, not for the weight.
        groups: equal parts of the experts; the best ``top_groups`` of them, by the sum of their two best, are open to the choice.
        top_groups: see ``groups``.
        activation: of the experts, shared or not.
        gated: experts are gated (three matrices rather than two).
        latent: width of the space in which the routed experts work, between latent_in and latent_out; None is D, without those.
        shared_ff: inner width of an expert that every position takes, outside the latent space; None has none.
        shared_gate: its output is multiplied by a sigmoid of the input.

    Shapes: (B, L, D) -> (B, L, D). State: the empty tuple.
    """

    has_time = True
    holds_input = True
    causal_tolerance = 1e-5
    """An expert's product has as many rows as chose it, and rounds accordingly."""
    dynamics = ("selection_bias",)
    writes = (ROUTER,)
    examples = (
        {"num_experts": 3, "top_k": 2, "d_ff": 12},
        {"num_experts": 6, "top_k": 2, "d_ff": 6, "score": "sigmoid", "selection_bias": True, "groups": 3, "top_groups": 2, "scale": 2.5,
         "activation": "relu2", "gated": False, "latent": 12, "shared_ff": 10, "shared_gate": True},
    )  # fmt: skip
    selection_bias: Tensor | None

    def __init__(
        self,
        d_model: int,
        num_experts: int,
        top_k: int,
        d_ff: int,
        score: Literal["softmax", "sigmoid"] = "softmax",
        renormalise: bool = True,
        renormalise_eps: float = 1e-20,
        scale: float = 1.0,
        selection_bias: bool = False,
        groups: int = 1,
        top_groups: int = 1,
        activation: Activation = "silu",
        gated: bool = True,
        latent: int | None = None,
        shared_ff: int | None = None,
        shared_gate: bool = False,
    ) -> None:
        super().__init__()
        check_positive(d_model=d_model, num_experts=num_experts, top_k=top_k, groups=groups, top_groups=top_groups)
        if score not in ("softmax", "sigmoid"):
            raise ValueError(f"score must be 'softmax' or 'sigmoid'; got {score!r}")
        if num_experts % groups or top_groups > groups or (groups > 1 and num_experts < 2 * groups):
            raise ValueError(f"groups must divide the {num_experts} experts into at least two each, and top_groups be no more; "
                             f"got {groups} and {top_groups}")  # fmt: skip
        if top_k > num_experts // groups * top_groups:
            raise ValueError(f"top_k={top_k} experts cannot be chosen from {num_experts // groups * top_groups}")
        if shared_gate and shared_ff is None:
            raise ValueError("shared_gate gates the shared expert: give shared_ff too")
        self.num_experts, self.top_k, self.score, self.scale = num_experts, top_k, score, scale
        self.renormalise, self.renormalise_eps, self.groups, self.top_groups = renormalise, renormalise_eps, groups, top_groups
        self.router = Router(d_model, num_experts)
        self.register_buffer("selection_bias", torch.zeros(num_experts) if selection_bias else None)
        self.latent_in = None if latent is None else Linear(d_model, latent, bias=False)
        self.experts = Experts(num_experts, d_model if latent is None else latent, d_ff, activation, gated)
        self.latent_out = None if latent is None else Linear(latent, d_model, bias=False)
        self.shared: nn.Module | None = None
        if shared_ff is not None:
            self.shared = (GatedMLP if gated else MLP)(d_model, shared_ff, activation)
        self.shared_gate = Linear(d_model, 1, bias=False) if shared_gate else None

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: tuple[()] | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        x = hide(x, timeline)
        rows = x.flatten(0, 1)
        logits = self.router(rows)
        scores = logits.softmax(-1) if self.score == "softmax" else logits.sigmoid()
        index = self.choose(scores)
        if bus is not None:
            exists = None if timeline is None else timeline.expand(x.shape[0], x.shape[1]).mask
            bus.setdefault(ROUTER, []).append(RouterStatistics.of(logits, scores, index, None if exists is None else exists.flatten()))
        weight = scores.gather(1, index)
        if self.renormalise:
            weight = weight / (weight.sum(-1, keepdim=True) + self.renormalise_eps)
        inner = rows if self.latent_in is None else self.latent_in(rows)
        y = self.experts(inner, index, weight * self.scale)
        y = y if self.latent_out is None else self.latent_out(y)
        if self.shared is not None:
            shared = self.shared(rows)
            y = y + (shared if self.shared_gate is None else torch.sigmoid(self.shared_gate(rows)) * shared)
        y = hide(y.view(x.shape), timeline)
        return (y, ()) if return_state else y

    def choose(self, scores: Tensor) -> Tensor:
        """Scores (T, E) -> the experts of each row, int64 (T, k), best first."""
        if self.selection_bias is not None:
            scores = scores + self.selection_bias
        if self.groups > 1:
            parts = scores.unflatten(1, (self.groups, -1))
            best = parts.topk(2, dim=-1).values.sum(-1).topk(self.top_groups, dim=-1).indices
            closed = torch.ones_like(parts[..., 0], dtype=torch.bool).scatter(1, best, False)
            scores = parts.masked_fill(closed.unsqueeze(-1), float("-inf")).flatten(1)
        return scores.topk(self.top_k, dim=-1).indices
