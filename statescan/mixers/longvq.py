"""LongVQ: softmax attention in linear time over keys that a codebook has quantised, behind a moving average and in front of a gate.

Papers: Liu et al., "LongVQ: Long Sequence Modeling with Vector Quantization on Structured Memory", 2024,
https://arxiv.org/abs/2404.11163, of which the text beyond the abstract was not at hand; Lingle, "Transformer-VQ", 2023,
https://arxiv.org/abs/2309.16354; Ma et al., "Mega", 2022, https://arxiv.org/abs/2209.10655, for the block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.layers.linear import Linear
from statescan.layers.vq import VectorQuantizer
from statescan.mixers.ema import EMAState, MultiHeadEMA
from statescan.mixers.sight import Sight, remember, take
from statescan.ops.checks import check_positive, check_shape, state_dtype
from statescan.protocols import Bus, CausalMixer
from statescan.registry import register
from statescan.state import state as declare_state
from statescan.timeline import Timeline, hide

BLOCK = 128
"""Queries whose scores exist at once; a traced graph has one block."""


@declare_state
class LongVQState(NamedTuple):
    """The average's; the last W tokens, of which the newest stands last; and those before them, by code. Float32 where not said."""

    ema: EMAState
    keys: Tensor
    """(B, W, Z), quantised, in the layer's dtype."""
    codes: Tensor
    """int64 (B, W)"""
    values: Tensor
    """(B, W, H), in the layer's dtype."""
    sums: Tensor
    """(B, S, H): values of the tokens that each code stands for."""
    counts: Tensor
    """int64 (B, S): how many these are."""
    position: Tensor
    """int64 (B,): existing positions since the last reset."""


class Memory(NamedTuple):
    """Older tokens by code, and the document they belong to."""

    sums: Tensor
    counts: Tensor
    document: Tensor
    """int64 (B,)"""


class Tokens(NamedTuple):
    """Cached and new ones in slots, (B, W + L, ...)."""

    keys: Tensor
    codes: Tensor
    values: Tensor
    document: Tensor
    exists: Tensor
    """bool"""


@register
class LongVQ(CausalMixer):
    """With m = silu(ema(x)) and k^ the nearest code of k::

        [phi, z, r, h_x] = base_proj(m),   q, k = gamma_i silu(z) + beta_i,   v = silu(v_proj(x))
        a_t = sum_{j<=t} e^{q_t . k^_j + b_{t-j}} v_j / sum_{j<=t} e^{q_t . k^_j + b_{t-j}}       b is zero from W positions on
        h   = silu(h_x + h_proj(a silu(r))),   y = sigmoid(phi) h + (1 - sigmoid(phi)) x

    Older tokens count by their codes: with U_s the sum of the values of a code and n_s their number, they add e^{q . c_s} U_s above and
    e^{q . c_s} n_s below. So the sum over all of the past costs as much as one over W tokens and S codes, and it is exact.

    Args:
        d_model: width D.
        d_attn: width Z of queries and keys.
        d_hidden: width H of values; None is 2 D.
        d_state: averages a channel.
        codes: size S of the codebook.
        window: recent tokens W, whose distance counts, and through whose keys gradients flow (older ones stand for themselves by code).
        decay: of the codebook's running averages.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`LongVQState`. In training the codebook moves with every call, and ``commitment`` is a
    loss to be added, of a small weight.
    """

    causal_tolerance = 1e-5
    estimates_gradients = True
    residual_outputs = ("h_proj",)
    examples = ({"d_attn": 4, "d_hidden": 6, "d_state": 2, "codes": 5, "window": 3},)

    def __init__(
        self,
        d_model: int,
        d_attn: int = 64,
        d_hidden: int | None = None,
        d_state: int = 16,
        codes: int = 512,
        window: int = 128,
        decay: float = 0.99,
    ) -> None:
        super().__init__()
        d_hidden = 2 * d_model if d_hidden is None else d_hidden
        check_positive(d_model=d_model, d_attn=d_attn, d_hidden=d_hidden, window=window)
        self.d_model, self.d_attn, self.d_hidden, self.window = d_model, d_attn, d_hidden, window
        self.ssm = MultiHeadEMA(d_model, d_state)
        self.base_proj = Linear(d_model, 2 * d_model + d_attn + d_hidden)
        self.v_proj = Linear(d_model, d_hidden)
        self.h_proj = Linear(d_hidden, d_model)
        self.gamma, self.beta = nn.Parameter(torch.ones(2, d_attn) * d_attn**-0.25), nn.Parameter(torch.zeros(2, d_attn))
        self.bias = nn.Parameter(0.02 * torch.randn(window))
        self.quantizer = VectorQuantizer(d_attn, codes, decay)

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: LongVQState | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        check_shape("x", x, ("B", "L", self.d_model))
        batch, length = x.shape[:2]
        line = Timeline() if timeline is None else timeline.without_interval(type(self).__name__).expand(batch, length)
        x = hide(x, line)
        state = self.init_state(batch, device=x.device) if state is None else state
        m, ema = self.ssm(x, line, state=state.ema, return_state=True)
        phi, z, r, h_x = self.base_proj(hide(m, line)).split([self.d_model, self.d_attn, self.d_hidden, self.d_model], dim=-1)
        q, k = (F.silu(z) * gamma + beta for gamma, beta in zip(self.gamma, self.beta, strict=True))
        keys, codes = self.quantizer(k)
        sight = Sight.of(line, state.position, batch, length, x.device)
        new = (keys, codes.unsqueeze(-1), F.silu(self.v_proj(x)))
        slots = [take(t.unsqueeze(2), sight.order).squeeze(2) for t in (q, *new)]
        tokens = self._tokens(state, slots[1], slots[2].squeeze(-1), slots[3], sight)
        a = self._attend(slots[0], tokens, Memory(state.sums, state.counts, torch.zeros_like(state.position)))
        if sight.slot is not None:
            a = take(a.unsqueeze(2), sight.slot.clamp(min=0)).squeeze(2)
        h = F.silu(h_x + self.h_proj(a.to(x.dtype) * F.silu(r)))
        y = hide(torch.lerp(x, h, torch.sigmoid(phi)), line)
        return (y, self._remembered(ema, tokens, state, sight, length)) if return_state else y

    def commitment(self, x: Tensor, timeline: Timeline | None = None) -> Tensor:
        """The quantiser's commitment loss on the keys of x (B, L, D)."""
        m = self.ssm(x, timeline)
        k = F.silu(self.base_proj(m)[..., self.d_model : self.d_model + self.d_attn]) * self.gamma[1] + self.beta[1]
        with torch.no_grad():
            codes = (k.unsqueeze(-2) - self.quantizer.codebook.to(k)).square().sum(-1).argmin(-1)
        return self.quantizer.commitment(k, codes)

    def _tokens(self, state: LongVQState, keys: Tensor, codes: Tensor, values: Tensor, sight: Sight) -> Tokens:
        batch, length = codes.shape
        here = torch.arange(-self.window, length, device=codes.device).unsqueeze(0)
        newest = length - 1 if sight.slot is None else sight.slot[:, -1:]
        document = torch.zeros(batch, length, dtype=torch.long, device=codes.device) if sight.document is None else sight.document
        old = (state.keys, state.codes, state.values)
        keys, codes, values = (torch.cat([a.to(b.dtype), b], 1) for a, b in zip(old, (keys, codes, values), strict=True))
        exists = (here >= -state.position.unsqueeze(1)) & (here <= newest)
        return Tokens(keys, codes, values, F.pad(document, (self.window, 0)), exists)

    def _attend(self, q: Tensor, tokens: Tokens, memory: Memory) -> Tensor:
        """q (B, L, Z) in slots -> (B, L, H), float32 at least."""
        length, window, tracing = q.shape[1], self.window, torch.compiler.is_compiling()
        dtype = state_dtype(q)
        codebook, parts = self.quantizer.codebook.to(dtype), []
        for start in [0] if tracing else range(0, length, BLOCK):
            stop = length if tracing else min(start + BLOCK, length)
            near = Tokens(*(t[:, start : window + stop] for t in tokens))
            rows = q[:, start:stop].to(dtype)
            distance = torch.arange(window, window + stop - start, device=q.device).unsqueeze(1) - torch.arange(
                window + stop - start, device=q.device
            )
            document = tokens.document[:, window + start : window + stop]
            recent = (distance >= 0) & (distance < window)
            scores = torch.where(
                recent,
                rows @ near.keys.to(dtype).mT + self.bias.to(dtype)[distance.clamp(0, window - 1)],
                rows @ codebook[near.codes].mT,
            )
            # every query sees its own slot at least, where nothing exists too
            seen = (distance >= 0) & near.exists.unsqueeze(1) & (document.unsqueeze(2) == near.document.unsqueeze(1)) | (distance == 0)
            there = (memory.counts > 0).unsqueeze(1) & (document == memory.document.unsqueeze(1)).unsqueeze(2)
            older = rows @ codebook.mT + memory.counts.clamp(min=1).to(dtype).log().unsqueeze(1)
            weights = torch.cat([scores.masked_fill(~seen, float("-inf")), older.masked_fill(~there, float("-inf"))], -1).softmax(-1)
            means = memory.sums / memory.counts.clamp(min=1).unsqueeze(-1)
            parts.append(weights[..., : near.codes.shape[1]] @ near.values.to(dtype) + weights[..., near.codes.shape[1] :] @ means)
            if stop < length:
                memory = self._absorb(memory, Tokens(*(t[:, start:stop] for t in tokens)), tokens.document[:, stop - 1])
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]

    def _absorb(self, memory: Memory, old: Tokens, document: Tensor) -> Memory:
        """Put tokens behind the window to those of their code; only those of one document are kept, the given one."""
        kept = old.exists & (old.document == document.unsqueeze(1))
        hits = F.one_hot(old.codes, memory.counts.shape[1]) * kept.unsqueeze(-1)
        more, dtype = hits.sum(1), memory.sums.dtype
        # a code that stood for nothing had no weight: once it stands for something, no gradient leads further back
        same = (memory.document == document).unsqueeze(1) & ((memory.counts > 0) | (more == 0))
        sums = memory.sums * same.to(dtype).unsqueeze(-1) + hits.to(dtype).mT @ old.values.to(dtype)
        return Memory(sums, memory.counts * same + more, document)

    def _remembered(self, ema: EMAState, tokens: Tokens, state: LongVQState, sight: Sight, length: int) -> LongVQState:
        """What falls out of the window is absorbed, of the document that is under way at the end."""
        existing = length if sight.slot is None else sight.slot[:, -1:] + 1
        column = torch.arange(tokens.codes.shape[1], device=tokens.codes.device).unsqueeze(0)
        fallen = tokens._replace(exists=tokens.exists & (column < existing))
        document = torch.zeros_like(state.position) if sight.document is None else sight.document.amax(1)
        memory = self._absorb(Memory(state.sums, state.counts, torch.zeros_like(document)), fallen, document)
        kept = [
            remember(t[:, :, None, None] if t.ndim == 2 else t.unsqueeze(2), length, sight, self.window).flatten(2)
            for t in (tokens.keys, tokens.codes, tokens.values)
        ]
        return LongVQState(ema, kept[0], kept[1].squeeze(-1), kept[2], memory.sums, memory.counts, sight.last)

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> LongVQState:
        """Nothing seen."""
        like, codes = self.gamma, self.quantizer.counts.numel()
        where = like.device if device is None else device
        keys, values = (torch.zeros(batch_size, self.window, n, dtype=like.dtype, device=where) for n in (self.d_attn, self.d_hidden))
        sums = torch.zeros(batch_size, codes, self.d_hidden, dtype=state_dtype(like), device=where)
        recent, counts, position = (
            torch.zeros(shape, dtype=torch.long, device=where) for shape in ((batch_size, self.window), (batch_size, codes), (batch_size,))
        )
        return LongVQState(self.ssm.init_state(batch_size, device=device), keys, recent, values, sums, counts, position)
