"""Selective S4: a video classifier on frame tokens whose first layer leaves out the tokens that a slow copy of it finds uninformative.

Papers: Islam and Bertasius, "Long Movie Clip Classification with State-Space Video Models" (ViS4mer), 2022,
https://arxiv.org/abs/2204.01692; Wang et al., "Selective Structured State-Spaces for Long-Form Video Understanding", 2023,
https://arxiv.org/abs/2303.14526. There is no public code of the latter: what is our reading of it is said below.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.layers.linear import Linear
from statescan.mixers.s4 import S4
from statescan.ops.checks import check_shape
from statescan.parameters import parameter_groups
from statescan.registry import register
from statescan.timeline import Timeline


class PoolingBlock(nn.Module):
    """ViS4mer's: GELU(Linear(mean of two neighbours of x + dropout(S4(norm(x))))), (B, L, D) -> (B, L/2, D/2).

    Of tokens left out S4 knows nothing, and has nothing to say; they pass by its side (our reading).
    """

    def __init__(self, d_model: int, d_state: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.mixer = S4(d_model, d_state)
        self.dropout = nn.Dropout(dropout)
        self.proj = Linear(d_model, d_model // 2)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """``keep`` (B, L): one for the tokens that S4 reads, zero for others; its gradient is that of a factor on what S4 reads."""
        h, line = self.norm(x), None
        if keep is not None:
            h, line = h * keep.unsqueeze(-1).to(h.dtype), Timeline.padded(keep.detach() > 0.5)
        x = x + self.dropout(self.mixer(h, line))
        return F.gelu(self.proj(F.avg_pool1d(x.mT, 2).mT))


@register
class SelectiveS4(nn.Module):
    """Tokens (B, L, D) of frames, frame after frame, to class scores.

    Every block halves length and width. With ``selective`` a slow copy of the first block's S4 reads all tokens, and from what it says two
    layers decide which tokens the first block's S4 reads: a straight-through Gumbel softmax in training, the likelier answer otherwise.

    Args:
        num_classes: classes; 0 gives the pooled features.
        d_model: width of the tokens, D; 2^n_layers must divide it.
        n_layers: blocks; 2^n_layers must divide the length.
        d_state: of S4.
        selective: choose tokens; without, it is ViS4mer.
        temperature: of the Gumbel softmax.
        dropout: behind S4.
    """

    def __init__(
        self,
        num_classes: int,
        d_model: int = 1024,
        n_layers: int = 3,
        d_state: int = 64,
        selective: bool = True,
        temperature: float = 1.0,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if n_layers < 1 or d_model % 2**n_layers:
            raise ValueError(f"2^n_layers must divide d_model; got n_layers={n_layers} and d_model={d_model}")
        self.d_model, self.temperature = d_model, temperature
        self.blocks = nn.ModuleList(PoolingBlock(d_model // 2**i, d_state, dropout) for i in range(n_layers))
        width = d_model // 2**n_layers
        self.head = Linear(width, num_classes) if num_classes else None
        self.slow = copy.deepcopy(self.blocks[0].mixer).requires_grad_(False) if selective else None  # type: ignore[union-attr]
        self.chooser = nn.Sequential(Linear(d_model, d_model // 4), nn.GELU(), Linear(d_model // 4, 2)) if selective else None

    def keep_logits(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, 2): leave out, keep. The slow copy receives no gradient, and none passes through it."""
        assert self.slow is not None
        assert self.chooser is not None
        with torch.no_grad():
            seen = self.slow(self.blocks[0].norm(x))  # type: ignore[operator, union-attr]
        return self.chooser(seen)

    def choose(self, x: Tensor) -> Tensor:
        """(B, L) of zeros and ones."""
        logits = self.keep_logits(x)
        if self.training:
            return F.gumbel_softmax(logits, self.temperature, hard=True)[..., 1]
        return logits.argmax(-1).to(x.dtype)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Scores (B, num_classes). ``keep`` (B, L) takes the place of the choice."""
        check_shape("x", x, ("B", "L", self.d_model))
        if x.shape[1] % 2 ** len(self.blocks):
            raise ValueError(f"the length must be a multiple of {2 ** len(self.blocks)}; got {x.shape[1]}")
        if keep is None and self.chooser is not None:
            keep = self.choose(x)
        for i, block in enumerate(self.blocks):
            x = block(x, keep if i == 0 else None)
        pooled = x.mean(1)
        return pooled if self.head is None else self.head(pooled)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy in nats."""
        return F.cross_entropy(output.float(), target)

    @torch.no_grad()
    def follow(self, momentum: float = 0.99) -> None:
        """After an optimiser step: the slow copy moves towards the layer."""
        if self.slow is None:
            raise ValueError("a model that is not selective has no slow copy")
        follow(self.slow, self.blocks[0].mixer, momentum)  # type: ignore[union-attr, arg-type]

    def parameter_groups(self, weight_decay: float = 0.01, lr: float | None = None) -> list[dict[str, Any]]:
        """Optimiser groups."""
        return parameter_groups(self, weight_decay=weight_decay, lr=lr)


@torch.no_grad()
def follow(slow: nn.Module, fast: nn.Module, momentum: float) -> None:
    """slow <- momentum slow + (1 - momentum) fast, of all parameters, in place."""
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum lies in [0, 1]; got {momentum}")
    for mine, other in zip(slow.parameters(), fast.parameters(), strict=True):
        mine.lerp_(other, 1 - momentum)


def contrast(query: Tensor, key: Tensor, temperature: float = 0.2) -> Tensor:
    """InfoNCE of features (B, D): row i of the queries belongs to row i of the keys, whose gradient is cut."""
    similarity = F.normalize(query, dim=-1) @ F.normalize(key.detach(), dim=-1).mT / temperature
    return F.cross_entropy(similarity, torch.arange(len(query), device=query.device))


def short_long_loss(
    model: SelectiveS4, slow: SelectiveS4, tokens: Tensor, short: int, left_out: float = 0.5, temperature: float = 0.2
) -> Tensor:
    """Long-short masked contrastive learning: features of the first ``short`` tokens by ``model`` against those of all by ``slow``.

    A share of the tokens is left out at random on both sides. Both models were made with ``num_classes=0``; :func:`follow` moves ``slow``.
    """

    def kept(length: int) -> Tensor:
        return (torch.rand(len(tokens), length, device=tokens.device) >= left_out).to(tokens.dtype)

    query = model(tokens[:, :short], kept(short))
    with torch.no_grad():
        key = slow(tokens, kept(tokens.shape[1]))
    return contrast(query, key, temperature)
