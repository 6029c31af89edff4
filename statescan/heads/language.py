"""Language models: token ids to next-token logits, with the state going in and out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from statescan.backbones import FlatBackbone, FlatState
from statescan.heads.cross_entropy import cross_entropy
from statescan.layers import QuantLinear
from statescan.layers.linear import Linear
from statescan.layers.norm import NormKind
from statescan.parameters import parameter_groups
from statescan.protocols import Bus
from statescan.registry import register
from statescan.spec import Spec
from statescan.timeline import Timeline, hide

LogitsAt = Literal["all", "last"] | int | Tensor


@register
class LanguageModel(nn.Module):
    """Embedding, a flat backbone, and a head tied to the embedding or not. The contract is a causal mixer's, on token ids.

    Args:
        vocab_size: rows of the embedding, V (padded sizes are the caller's choice).
        d_model: width D.
        layers: pattern over the names of ``parts``: ``"M*24"``, ``"(MMA)*8"``.
        parts: name (one letter) -> mixer or layer.
        norm_eps: of every norm.
        tie_embeddings: the head shares the embedding's weight.
        residual_in_fp32: keep the residual stream in float32 whatever the layers' dtype.
        norm: kind of every norm: "rms", "layer", or scaled by 1 + weight "rms_offset", "layer_offset" (without bias).
        embedding_scale: fixed multiplier of what the embedding gives.
        embedding_norm: normalise what the embedding gives (RWKV).
        residual_scale: fixed multiplier of what each layer adds to the stream.
        logit_scale: fixed multiplier of the logits.
        logit_cap: bound c of the logits, c tanh(logits / c); None is none.
        head_bias: bias of the head.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        layers: str = "M*24",
        parts: Mapping[str, Callable[[int], nn.Module]] | None = None,
        norm_eps: float = 1e-5,
        tie_embeddings: bool = True,
        residual_in_fp32: bool = True,
        norm: NormKind = "rms",
        embedding_scale: float = 1.0,
        embedding_norm: bool = False,
        residual_scale: float = 1.0,
        logit_scale: float = 1.0,
        logit_cap: float | None = None,
        head_bias: bool = False,
    ) -> None:
        super().__init__()
        if vocab_size < 1 or d_model < 1:
            raise ValueError(f"vocab_size and d_model must be positive; got {vocab_size} and {d_model}")
        self.vocab_size, self.d_model, self.tie_embeddings = vocab_size, d_model, tie_embeddings
        if logit_cap is not None and not logit_cap > 0:
            raise ValueError(f"logit_cap must be positive, or None; got {logit_cap}")
        self.logit_scale, self.logit_cap = float(logit_scale), logit_cap
        self.backbone = FlatBackbone(
            d_model, layers, parts or {"M": Spec("Mamba")}, vocab_size, norm_eps, residual_in_fp32, norm=norm,
            embedding_scale=embedding_scale, embedding_norm=embedding_norm, residual_scale=residual_scale,
        )  # fmt: skip
        self.lm_head = Linear(d_model, vocab_size, bias=head_bias)
        self.tie()
        self.tokenizer: Any = None
        """How text becomes ids; set when a folder that has one is loaded."""

    def tie(self) -> None:
        """Let head and embedding share a weight, where they should (after loading, say). A quantised head has its own."""
        if self.tie_embeddings and not isinstance(self.lm_head, QuantLinear):
            self.lm_head.weight = self.backbone.embedding.weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LanguageModel:
        super()._apply(fn, recurse)
        self.tie()  # moving off the meta device replaces parameters one by one
        return self

    def forward(
        self,
        ids: Tensor,
        timeline: Timeline | None = None,
        *,
        state: FlatState | None = None,
        return_state: bool = False,
        logits_at: LogitsAt = "all",
        bus: Bus | None = None,
    ) -> Any:
        """Ids (B, L) -> logits (B, L, V), or (B, V) at one position a row.

        ``logits_at``: "all"; "last", the last existing position of each row; an index; or one index a row, (B,).
        """
        if ids.ndim != 2 or ids.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"ids must be integers of shape (batch, length); got {ids.dtype} {tuple(ids.shape)}")
        if ids.shape[1] == 0:
            raise ValueError("ids has length 0: a sequence needs at least one token")
        h, state = self.backbone(ids, timeline, state=state, return_state=True, bus=bus)
        if isinstance(logits_at, str) and logits_at == "all":
            logits = hide(self.bounded(self.lm_head(h)), timeline)
        else:
            logits = self.bounded(self.lm_head(_pick(h, timeline, logits_at)))
        return (logits, state) if return_state else logits

    def bounded(self, logits: Tensor) -> Tensor:
        """The head's output, scaled and capped."""
        if self.logit_scale != 1:
            logits = logits * self.logit_scale
        return logits if self.logit_cap is None else self.logit_cap * torch.tanh(logits / self.logit_cap)

    def scan(
        self,
        ids: Tensor,
        state: FlatState | None = None,
        timeline: Timeline | None = None,
        bus: Bus | None = None,
        *,
        logits_at: LogitsAt = "all",
    ) -> tuple[Tensor, FlatState]:
        """``(logits, state)``: a chunk."""
        return self(ids, timeline, state=state, return_state=True, logits_at=logits_at, bus=bus)

    def step(self, ids: Tensor, state: FlatState, timeline: Timeline | None = None, bus: Bus | None = None) -> tuple[Tensor, FlatState]:
        """One token a row: ids (B,), timeline fields (B,) -> logits (B, V)."""
        line = None if timeline is None else timeline.as_sequence()
        logits, state = self(ids.unsqueeze(1), line, state=state, return_state=True, bus=bus)
        return logits.squeeze(1), state

    def init_state(self, batch_size: int, *, capacity: int | None = None, device: torch.device | str | None = None) -> FlatState:
        """The state before the first token."""
        return self.backbone.init_state(batch_size, capacity=capacity, device=device)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats over targets that are not negative (-100 marks what is not predicted)."""
        return cross_entropy(logits, targets)

    def parameter_groups(self, weight_decay: float = 0.1, lr: float | None = None) -> list[dict[str, Any]]:
        """Optimiser groups: dynamics, norms and biases without weight decay; some parameters with a rate of their own."""
        return parameter_groups(self, weight_decay=weight_decay, lr=lr)


def _pick(h: Tensor, timeline: Timeline | None, at: LogitsAt) -> Tensor:
    batch, length = h.shape[:2]
    if isinstance(at, str):
        if at != "last":
            raise ValueError(f"logits_at must be 'all', 'last', an index or one index a row; got {at!r}")
        if timeline is None or timeline.mask is None:
            return h[:, -1]
        mask = timeline.expand(batch, length).mask
        assert mask is not None
        at = (mask.long() * torch.arange(1, length + 1, device=h.device)).amax(1).sub(1).clamp(min=0)
    if isinstance(at, int):
        if not -length <= at < length:
            raise ValueError(f"logits_at={at} lies outside a sequence of length {length}")
        return h[:, at]
    if at.shape != (batch,):
        raise ValueError(f"logits_at as a tensor must have shape ({batch},), one index a row; got {tuple(at.shape)}")
    return h.gather(1, at.long().view(-1, 1, 1).expand(-1, 1, h.shape[2])).squeeze(1)
