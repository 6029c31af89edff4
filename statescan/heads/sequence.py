"""Whole sequences, or each of their positions, to classes or numbers: encoder, flat backbone, pool over the positions that exist."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.backbones import FlatBackbone, HierarchicalBackbone
from statescan.layers.linear import Linear
from statescan.layers.norm import NormKind
from statescan.parameters import parameter_groups
from statescan.registry import register
from statescan.timeline import Timeline, hide

Encoder = Literal["linear", "one_hot", "embedding"]
Pool = Literal["mean", "last", "none"]
MISSING = -100
"""The class number of what has no label."""


@register
class SequenceClassifier(nn.Module):
    """Sequences (B, L, d_input), or token ids (B, L), to class scores (B, num_classes): long-range arena and its kin.

    With ``pool="none"`` every position is classified: (B, L, num_classes).

    Args:
        num_classes: classes.
        d_model: width D.
        d_input: features a position, or the number of tokens.
        layers: pattern over the names of ``parts``.
        parts: name (one letter) -> mixer or layer.
        encoder: ``linear`` reads features; ``one_hot`` is that of tokens as one-hot rows, with its bias; ``embedding`` has no bias.
        pool: ``mean`` of the positions that exist, the ``last`` of them, or ``none``.
        pairs: rows come in pairs, row i of the first half of the batch with row i of the second, and a pair is classified: from
            [a, b, a - b, a b] through one hidden layer.
        norm: kind of every norm.
        norm_f: normalise the last stream.
        norm_eps: of every norm.
        dropout: of what each layer adds to the stream, in training.
    """

    def __init__(
        self,
        num_classes: int,
        d_model: int,
        d_input: int,
        layers: str,
        parts: Mapping[str, Callable[[int], nn.Module]],
        encoder: Encoder = "linear",
        pool: Pool = "mean",
        pairs: bool = False,
        norm: NormKind = "layer",
        norm_f: bool = False,
        norm_eps: float = 1e-5,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if min(num_classes, d_model, d_input) < 1:
            raise ValueError(f"num_classes, d_model and d_input must be positive; got {num_classes}, {d_model} and {d_input}")
        if encoder not in ("linear", "one_hot", "embedding") or pool not in ("mean", "last", "none"):
            raise ValueError(f"encoder is linear, one_hot or embedding, and pool mean, last or none; got {encoder!r} and {pool!r}")
        if pairs and pool == "none":
            raise ValueError("pairs are of whole sequences: pool must be mean or last")
        self.d_input, self.kind, self.pool, self.pairs = d_input, encoder, pool, pairs
        self.encoder: nn.Module = nn.Embedding(d_input, d_model) if encoder == "embedding" else Linear(d_input, d_model)
        self.backbone: FlatBackbone | HierarchicalBackbone
        self.backbone = FlatBackbone(d_model, layers, parts, norm=norm, norm_f=norm_f, norm_eps=norm_eps, dropout=dropout)
        self.pair = Linear(4 * d_model, d_model) if pairs else None
        self.decoder = Linear(d_model, num_classes)

    def forward(self, x: Tensor, timeline: Timeline | None = None) -> Tensor:
        """Scores: (B, num_classes), half as many rows for pairs, or (B, L, num_classes) without a pool."""
        pooled = self.features(x, timeline)
        if self.pair is not None:
            if len(pooled) % 2:
                raise ValueError(f"pairs need an even number of rows, first halves and then second ones; got {len(pooled)}")
            a, b = pooled.chunk(2)
            pooled = F.gelu(self.pair(torch.cat([a, b, a - b, a * b], dim=-1)), approximate="tanh")
        return self.decoder(pooled)

    def features(self, x: Tensor, timeline: Timeline | None = None) -> Tensor:
        """One row a sequence, (B, D), zeros for a sequence without positions; or one a position, (B, L, D)."""
        line = None if timeline is None else timeline.expand(x.shape[0], x.shape[1])
        x = hide(x, line)
        if self.kind == "one_hot":
            x = F.one_hot(x.long(), self.d_input).to(self.decoder.weight.dtype)
        h = self.backbone(hide(self.encoder(x), line), line)
        if self.pool != "none":
            h = self._pooled(h, line)
        return h.to(self.decoder.weight.dtype)

    def _pooled(self, h: Tensor, line: Timeline | None) -> Tensor:
        if line is None or line.mask is None:
            return h[:, -1] if self.pool == "last" else h.mean(1)
        if self.pool == "last":
            place = (line.mask.long() * torch.arange(h.shape[1], device=h.device)).amax(1)
            return h.gather(1, place.view(-1, 1, 1).expand(-1, 1, h.shape[2])).squeeze(1)
        return h.sum(1) / line.mask.sum(1, keepdim=True).clamp(min=1)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy in nats; target is class numbers, one a row of the output; :data:`MISSING` ones do not count."""
        total = F.cross_entropy(output.float().flatten(0, -2), target.flatten(), ignore_index=MISSING, reduction="sum")
        return total / (target != MISSING).sum().clamp_min(1)

    def parameter_groups(self, weight_decay: float = 0.05, lr: float | None = None) -> list[dict[str, Any]]:
        """Optimiser groups: dynamics, norms and biases without weight decay; some parameters with a rate of their own."""
        return parameter_groups(self, weight_decay=weight_decay, lr=lr)


@register
class SequenceRegressor(SequenceClassifier):
    """Sequences to numbers: (B, d_output), or with ``pool="none"`` (B, L, d_output).

    Args:
        d_output: numbers a sequence or position; the others are :class:`SequenceClassifier`'s.
    """

    def __init__(
        self,
        d_output: int,
        d_model: int,
        d_input: int,
        layers: str,
        parts: Mapping[str, Callable[[int], nn.Module]],
        encoder: Encoder = "linear",
        pool: Pool = "mean",
        norm: NormKind = "layer",
        norm_f: bool = False,
        norm_eps: float = 1e-5,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(d_output, d_model, d_input, layers, parts, encoder, pool, False, norm, norm_f, norm_eps, dropout)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean squared error; NaN targets do not count."""
        seen = ~target.isnan()
        return torch.where(seen, output.float() - torch.where(seen, target, 0), 0).square().sum() / seen.sum().clamp_min(1)
