"""A policy and a value from one backbone whose state is its memory: for environments that do not show all there is to know.

After Lu et al., "Structured State Space Models for In-Context Reinforcement Learning", 2023, https://arxiv.org/abs/2303.03982, with any
causal mixer in the place of S5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.backbones import FlatBackbone, FlatState
from statescan.blocks import Residual
from statescan.layers.linear import Linear
from statescan.layers.norm import NormKind
from statescan.parameters import parameter_groups
from statescan.timeline import Timeline

PolicyNorm = Literal["rms", "layer", "none"]


class Bare(Residual):
    """x + mixer(x), without a norm."""

    def __init__(self, d_model: int, mixer: nn.Module) -> None:
        super().__init__(d_model, mixer)
        self.norm = nn.Identity()  # type: ignore[assignment]


class ActorCritic(nn.Module):
    """Inputs (B, L, d_input) to a policy (B, L, actions) and a value (B, L)::

        h = backbone(leaky(W2 leaky(W1 x)));   policy, value: two hidden layers and a linear map of h each

    A policy is logits, or for ``continuous`` actions means, beside one ``log_std`` for each. ``timeline.reset`` stands where an episode
    begins. Weights outside the backbone start orthogonal.

    Args:
        d_input: features a position.
        actions: how many there are, or their dimension.
        continuous: actions are vectors.
        d_model: width D of the backbone.
        layers: pattern over the names of ``parts``.
        parts: name (one letter) -> mixer or layer.
        d_hidden: width of the layers before and behind the backbone.
        norm: kind of every norm of the backbone; ``none``: the published POPGym agents have none.
    """

    def __init__(
        self,
        d_input: int,
        actions: int,
        continuous: bool,
        d_model: int,
        layers: str,
        parts: Mapping[str, Callable[[int], nn.Module]],
        d_hidden: int = 128,
        norm: PolicyNorm = "rms",
    ) -> None:
        super().__init__()
        self.encoder = nn.Sequential(_linear(d_input, d_hidden), nn.LeakyReLU(), _linear(d_hidden, d_model), nn.LeakyReLU())
        if norm == "none":
            bare = {name: lambda width, part=part: Bare(width, part(width)) for name, part in parts.items()}
            self.backbone = FlatBackbone(d_model, layers, bare, norm_f=False)
        else:
            kind: NormKind = norm
            self.backbone = FlatBackbone(d_model, layers, parts, norm=kind)
        if not self.backbone.causal:
            raise ValueError("an agent acts before it sees what follows: it needs causal mixers, and one of these looks ahead")
        self.actor = _head(d_model, d_hidden, actions, 0.01)
        self.critic = _head(d_model, d_hidden, 1, 1.0)
        self.log_std = nn.Parameter(torch.zeros(actions)) if continuous else None

    def forward(self, x: Tensor, timeline: Timeline | None = None, *, state: FlatState | None = None, return_state: bool = False) -> Any:
        """``(policy, value)``, or ``(policy, value, state)``."""
        h, state = self.backbone(self.encoder(x), timeline, state=state, return_state=True)
        out = self.actor(h), self.critic(h).squeeze(-1)
        return (*out, state) if return_state else out

    def step(self, x: Tensor, state: FlatState, start: Tensor | None = None) -> tuple[Tensor, Tensor, FlatState]:
        """One position, x (B, d_input), after a reset of the rows where ``start`` (B,): (policy, value, state)."""
        h, after = self.backbone.step(self.encoder(x), state, None if start is None else Timeline(reset=start))
        return self.actor(h), self.critic(h).squeeze(-1), after

    # -- the distribution of actions ----------------------------------------------------------------------------------------------

    def sample(self, policy: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """An action a row: int64 (B,), or (B, actions)."""
        if self.log_std is None:
            return torch.multinomial(policy.softmax(-1), 1, generator=generator).squeeze(-1)
        return policy + self.log_std.exp() * torch.randn(policy.shape, generator=generator, dtype=policy.dtype)

    def likeliest(self, policy: Tensor) -> Tensor:
        """The most probable action of each row."""
        return policy.argmax(-1) if self.log_std is None else policy

    def log_prob(self, policy: Tensor, action: Tensor) -> Tensor:
        """Log probability, or density, of actions: the shape of ``policy`` without its last axis."""
        if self.log_std is None:
            return F.log_softmax(policy, -1).gather(-1, action.unsqueeze(-1)).squeeze(-1)
        z = (action - policy) / self.log_std.exp()
        return (-0.5 * z.square() - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self, policy: Tensor) -> Tensor:
        """Of the distribution at each position, in nats."""
        if self.log_std is None:
            log_p = F.log_softmax(policy, -1)
            return -(log_p.exp() * log_p).sum(-1)
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum().expand(policy.shape[:-1])

    def parameter_groups(self, weight_decay: float = 0.0, lr: float | None = None) -> list[dict[str, Any]]:
        """Optimiser groups: dynamics, norms and biases without weight decay; some parameters with a rate of their own."""
        return parameter_groups(self, weight_decay=weight_decay, lr=lr)


def _linear(width: int, out: int, gain: float = math.sqrt(2)) -> nn.Linear:
    layer = Linear(width, out)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def _head(width: int, hidden: int, out: int, gain: float) -> nn.Sequential:
    return nn.Sequential(
        _linear(width, hidden, 2.0), nn.LeakyReLU(), _linear(hidden, hidden, 2.0), nn.LeakyReLU(), _linear(hidden, out, gain)
    )
