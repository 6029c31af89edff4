"""Masked language models: a backbone that looks both ways fills in what was hidden from it.

Paper: Devlin, Chang, Lee and Toutanova, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", 2018,
https://arxiv.org/abs/1810.04805.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.backbones import FlatBackbone
from statescan.blocks import AddNorm
from statescan.heads.cross_entropy import cross_entropy
from statescan.layers import QuantLinear
from statescan.layers.linear import Linear
from statescan.layers.norm import NormKind, make_norm
from statescan.parameters import parameter_groups
from statescan.protocols import Bus
from statescan.registry import register
from statescan.spec import Spec
from statescan.timeline import Timeline, hide


@register
class MaskedLanguageModel(nn.Module):
    """Embedding and norm, a flat backbone, and BERT's head: logits = decoder(norm(gelu(dense(h)))), its weight tied to the embedding.

    Args:
        vocab_size: rows of the embedding, V.
        d_model: width D.
        layers: pattern over the names of ``parts``: ``"M*23"``.
        parts: name (one letter) -> mixer or layer. Nothing here needs a causal one.
        norm_eps: of every norm.
        post_norm: blocks are norm(x + mixer(x)), as in BERT; otherwise x + mixer(norm(x)), with a norm behind the last.
        norm: kind of every norm.
        residual_in_fp32: keep the stream in float32 whatever the layers' dtype.

    Called as every sequence model here, on ids (B, L) and a timeline: logits (B, L, V), zero at positions that do not exist.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        layers: str = "M*12",
        parts: Mapping[str, Callable[[int], nn.Module]] | None = None,
        norm_eps: float = 1e-5,
        post_norm: bool = True,
        norm: NormKind = "layer",
        residual_in_fp32: bool = True,
    ) -> None:
        super().__init__()
        if vocab_size < 1 or d_model < 1:
            raise ValueError(f"vocab_size and d_model must be positive; got {vocab_size} and {d_model}")
        self.vocab_size, self.d_model = vocab_size, d_model
        made = parts or {"M": Spec("Hydra")}
        if post_norm:
            made = {name: _behind(part, norm_eps, norm) for name, part in made.items()}
        self.backbone = FlatBackbone(
            d_model, layers, made, vocab_size, norm_eps, residual_in_fp32, norm_f=not post_norm, norm=norm, embedding_norm=True
        )
        self.dense = Linear(d_model, d_model)
        self.norm = make_norm(norm, d_model, norm_eps)
        self.lm_head = Linear(d_model, vocab_size)
        nn.init.zeros_(self.lm_head.bias)
        self.tie()

    def tie(self) -> None:
        """Let head and embedding share a weight. A quantised head has its own."""
        if not isinstance(self.lm_head, QuantLinear):
            self.lm_head.weight = self.backbone.embedding.weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MaskedLanguageModel:
        super()._apply(fn, recurse)
        self.tie()  # moving off the meta device replaces parameters one by one
        return self

    def forward(self, ids: Tensor, timeline: Timeline | None = None, *, bus: Bus | None = None) -> Tensor:
        """Ids (B, L) -> logits (B, L, V)."""
        if ids.ndim != 2 or ids.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"ids must be integers of shape (batch, length); got {ids.dtype} {tuple(ids.shape)}")
        h = self.backbone(ids, timeline, bus=bus)
        return hide(self.lm_head(self.norm(F.gelu(self.dense(h.to(self.dense.weight.dtype))))), timeline)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats over targets that are not negative: those that :func:`corrupt` hid."""
        return cross_entropy(logits, targets)

    def parameter_groups(self, weight_decay: float = 0.1) -> list[dict[str, Any]]:
        """Optimiser groups: dynamics, norms and biases without weight decay."""
        return parameter_groups(self, weight_decay=weight_decay)


def _behind(part: Callable[[int], nn.Module], norm_eps: float, norm: NormKind) -> Callable[[int], nn.Module]:
    return lambda d_model: AddNorm(d_model, part(d_model), norm_eps, norm)


def corrupt(
    ids: Tensor,
    mask_id: int,
    vocab_size: int,
    rate: float = 0.15,
    special: Sequence[int] = (),
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """What a masked language model reads and what it is to say: (inputs, targets), both of the shape of ``ids``.

    Each id is chosen with probability ``rate``, but those in ``special`` and negative ones never are. Of the chosen, 80 % become
    ``mask_id``, 10 % any id below ``vocab_size``, and 10 % stay. Targets are the ids chosen, and -100 elsewhere.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"rate must lie in (0, 1]; got {rate}")

    def chance() -> Tensor:
        return torch.rand(ids.shape, generator=generator, device=ids.device)

    chosen = (chance() < rate) & (ids >= 0) & ~torch.isin(ids, torch.tensor(list(special), dtype=ids.dtype, device=ids.device))
    fate = chance()
    other = torch.randint(0, vocab_size, ids.shape, generator=generator, device=ids.device, dtype=ids.dtype)
    inputs = torch.where(chosen & (fate < 0.8), mask_id, torch.where(chosen & (fate >= 0.9), other, ids))
    return inputs, torch.where(chosen, ids, -100)
