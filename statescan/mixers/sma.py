"""Sparse modular activation: a moving average on every token, and a gated attention unit on those that a router picks.

Papers: Ren et al., "Sparse Modular Activation for Efficient Sequence Modeling", 2023, https://arxiv.org/abs/2306.11197 (SeqBoat); the unit:
Hua et al., "Transformer Quality in Linear Time", 2022, https://arxiv.org/abs/2202.10447. Parameter names are those of the released code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.layers.linear import Linear
from statescan.layers.rotary import rotate
from statescan.mixers.ema import BidirectionalEMA, EMAState, MultiHeadEMA
from statescan.mixers.sight import BLOCK, Sight, remember, take
from statescan.ops.checks import check_positive, check_shape, state_dtype
from statescan.protocols import Bus, CausalMixer, Mixer
from statescan.registry import register
from statescan.state import state as declare_state
from statescan.timeline import Timeline, hide

AttentionActivation = Literal["softmax", "relu2"]
Places = Literal["bias", "rotary"]


@declare_state
class SMAState(NamedTuple):
    """The average's, and the last ``window`` active tokens: the newest stands last, and what is not filled yet is zero."""

    ema: EMAState
    keys: Tensor
    """(B, W, Z), in the layer's dtype."""
    values: Tensor
    """(B, W, H)"""
    places: Tensor
    """int64 (B, W): existing positions before each in its document."""
    position: Tensor
    """int64 (B,): existing positions since the last reset."""
    active: Tensor
    """int64 (B,): active ones among them."""


class Picked(NamedTuple):
    """The active tokens of a call, in front: M slots a row."""

    tokens: Tensor
    """(B, M, D)"""
    places: Tensor
    """int64 (B, M)"""
    sight: Sight
    """Of a timeline on which only active tokens exist."""


class SparseUnit(Mixer):
    """What both directions share. With m = silu(ema(x))::

        [u, h_x] = hx_proj(m),   probs = softmax(u / exp(temp)),   active: probs_1 > probs_0
        [z, r, v] = silu(mx_proj(m)) on active tokens,   q = gamma_0 z + beta_0,   k = gamma_1 z + beta_1
        a = f(q k^T / scale + places) v                over the active tokens at most ``window`` active ones away
        y = h_x + probs_1 extract(h_proj(r a))         h_x alone where a token is not active

    Args:
        d_model: width D.
        d_attn: width Z of queries and keys.
        d_hidden: width H of values; None is 2 D.
        d_state: averages a channel.
        window: how many active tokens away another one may be, W.
        activation: f: softmax, of q k^T / sqrt(Z); or relu2, relu(.)^2 of q k^T / W (2 W in both directions).
        places: how positions of the original sequence enter: a learned ``bias`` of their distance, or ``rotary`` angles.
        max_positions: distances that the bias tells apart.
        rotary_base: base of the angles.
        temperature: initial exp(temp), in sqrt(D).
    """

    causal_tolerance = 1e-5
    residual_outputs = ("h_proj",)
    reach: int = 1

    def __init__(
        self,
        d_model: int,
        d_attn: int = 96,
        d_hidden: int | None = None,
        d_state: int = 16,
        window: int = 128,
        activation: AttentionActivation = "relu2",
        places: Places = "bias",
        max_positions: int = 1024,
        rotary_base: float = 10000.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        d_hidden = 2 * d_model if d_hidden is None else d_hidden
        check_positive(
            d_model=d_model, d_attn=d_attn, d_hidden=d_hidden, window=window, max_positions=max_positions, temperature=temperature
        )
        if places == "rotary" and d_attn % 2:
            raise ValueError(f"rotary places need an even d_attn; got {d_attn}")
        self.d_model, self.d_attn, self.d_hidden, self.window = d_model, d_attn, d_hidden, window
        self.activation, self.rotary_base = activation, rotary_base if places == "rotary" else None
        self.ssm = self.average(d_state)
        self.temp = nn.Parameter(torch.tensor([math.log(temperature * math.sqrt(d_model))]))
        self.hx_proj = Linear(d_model, 2 + d_model)
        self.mx_proj = Linear(d_model, d_attn + 2 * d_hidden)
        self.h_proj = Linear(d_hidden, d_model)
        for linear in (self.hx_proj, self.mx_proj, self.h_proj):
            nn.init.trunc_normal_(linear.weight, std=0.02, a=-0.04, b=0.04)
            nn.init.zeros_(linear.bias)
        self.gamma, self.beta = nn.Parameter(0.02 * torch.randn(2, d_attn)), nn.Parameter(torch.zeros(2, d_attn))
        self.rel_pos_bias = nn.Parameter(0.02 * torch.randn(2 * max_positions - 1)) if places == "bias" else None

    def average(self, d_state: int) -> Mixer:
        """The moving average, silu behind it."""
        return MultiHeadEMA(self.d_model, d_state)

    def route(self, m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """h_x, the weight of the unit (B, L, 1), and which tokens are active, bool (B, L)."""
        u, h_x = self.hx_proj(m).split([2, self.d_model], dim=-1)
        dtype = state_dtype(u)
        probs = (u.to(dtype) / self.temp.to(dtype).exp()).softmax(-1)
        return h_x, probs[..., 1:].to(h_x.dtype), probs[..., 1] > probs[..., 0]

    def pick(self, m: Tensor, line: Timeline, active: Tensor, position: Tensor, before: Tensor | None) -> Picked:
        """Compress: active tokens in front, as many slots as the fullest row needs; where nobody sees values, one a position."""
        exists = active if line.mask is None else active & line.mask
        sight = Sight.of(line._replace(mask=exists), before, m.shape[0], m.shape[1], m.device)
        blind = torch.compiler.is_compiling() or exists.is_meta
        slots = m.shape[1] if blind else max(1, int(exists.sum(1).amax()))
        assert sight.order is not None
        order = sight.order[:, :slots]
        return Picked(take(m.unsqueeze(2), order).squeeze(2), position.gather(1, order), sight)

    def unit(self, picked: Picked, cache: tuple[Tensor, Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Picked tokens to (B, M, D); and keys, values and places of the cache and of them, in slots."""
        z, r, v = F.silu(self.mx_proj(picked.tokens)).split([self.d_attn, self.d_hidden, self.d_hidden], dim=-1)
        q, k = (z * gamma + beta for gamma, beta in zip(self.gamma, self.beta, strict=True))
        if self.rotary_base is not None:
            q, k = (rotate(t.unsqueeze(2), picked.places, self.rotary_base, self.d_attn).squeeze(2) for t in (q, k))
        keys, values, places = k, v, picked.places
        if cache is not None:
            keys, values = (torch.cat([old.to(new.dtype), new], 1) for old, new in zip(cache[:2], (k, v), strict=True))
            places = torch.cat([cache[2], places], 1)
        a = self.attend(q, picked, keys, values, places)
        return self.h_proj(a * r), (keys, values, places)

    def attend(self, q: Tensor, picked: Picked, keys: Tensor, values: Tensor, places: Tensor) -> Tensor:
        """A block of queries at a time, which reads its window."""
        length, tracing = q.shape[1], torch.compiler.is_compiling()
        cached, ahead = keys.shape[1] - length, (self.reach - 1) * self.window
        dtype = state_dtype(q)
        scale = self.d_attn**-0.5 if self.activation == "softmax" else 1 / (self.reach * self.window)
        parts = []
        for start in [0] if tracing else range(0, length, BLOCK):  # a traced graph serves every length, so it has one block
            stop = length if tracing else min(start + BLOCK, length)
            first = 0 if tracing else max(0, cached + start - self.window)
            end = cached + length if tracing else cached + min(length, stop + ahead)
            scores = (q[:, start:stop].to(dtype) @ keys[:, first:end].to(dtype).mT) * scale
            if self.rel_pos_bias is not None:
                furthest = self.rel_pos_bias.numel() // 2
                distance = places[:, None, first:end] - picked.places[:, start:stop, None]
                scores = scores + self.rel_pos_bias.to(dtype)[distance.clamp(-furthest, furthest) + furthest]
            seen = self.seen(picked.sight, cached, (start, stop), (first, end), q.device)
            if self.activation == "softmax":
                weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
            else:
                weights = torch.where(seen, scores.relu().square(), 0)
            parts.append(weights.to(values.dtype) @ values[:, first:end])
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]

    def seen(self, sight: Sight, cached: int, rows: tuple[int, int], columns: tuple[int, int], device: torch.device) -> Tensor:
        """bool (B or 1, rows, columns). Every query sees its own slot at least."""
        row = torch.arange(*rows, device=device).unsqueeze(1) + cached
        column = torch.arange(*columns, device=device)
        ahead = (self.reach - 1) * self.window
        seen = ((column >= row - self.window) & (column <= row + ahead)).unsqueeze(0)
        if self.reach > 1:  # what stands behind the active tokens of a row is not there
            assert sight.slot is not None
            seen = seen & (column <= sight.slot[:, -1:]).unsqueeze(1) | (column == row)
        if sight.before is not None:
            seen = seen & (column >= cached - sight.before.unsqueeze(1)).unsqueeze(1)
        if sight.document is not None:
            of_key = F.pad(sight.document, (cached, 0))[:, columns[0] : columns[1]]
            seen = seen & (sight.document[:, rows[0] : rows[1]].unsqueeze(2) == of_key.unsqueeze(1))
        return seen


def extract(h: Tensor, sight: Sight, active: Tensor) -> Tensor:
    """Slots (B, M, D) back to positions (B, L, D); zero where a token is not active."""
    assert sight.slot is not None
    found = take(h.unsqueeze(2), sight.slot.clamp(min=0)).squeeze(2)
    return torch.where(active.unsqueeze(-1), found, 0)


@register
class SMA(SparseUnit, CausalMixer):
    """The sparse unit looking back: see :class:`SparseUnit`, whose arguments it has.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`SMAState`. A traced graph computes the unit at every position.
    """

    examples = ({"d_attn": 6, "d_hidden": 8, "d_state": 2, "window": 3, "activation": "softmax", "max_positions": 5},)

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: SMAState | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        check_shape("x", x, ("B", "L", self.d_model))
        batch, length = x.shape[:2]
        line = Timeline() if timeline is None else timeline.without_interval(type(self).__name__).expand(batch, length)
        m, ema = self.ssm(x, line, state=None if state is None else state.ema, return_state=True)
        m = hide(m, line)
        h_x, weight, active = self.route(m)
        every = Sight.of(line, None if state is None else state.position, batch, length, x.device)
        picked = self.pick(m, line, active, every.position, None if state is None else state.active)
        h, (keys, values, places) = self.unit(picked, None if state is None else (state.keys, state.values, state.places))
        y = hide(h_x + weight * extract(h, picked.sight, active), line)
        if not return_state:
            return y
        slots = picked.tokens.shape[1]
        keys, values = (remember(t.unsqueeze(2), slots, picked.sight, self.window).squeeze(2) for t in (keys, values))
        older = remember(places[:, :, None, None], slots, picked.sight, self.window).flatten(1)
        return y, SMAState(ema, keys, values, older, every.last, picked.sight.last)

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> SMAState:
        """Nothing seen."""
        like = self.gamma
        where = like.device if device is None else device
        keys, values = (torch.zeros(batch_size, self.window, n, dtype=like.dtype, device=where) for n in (self.d_attn, self.d_hidden))
        places, position, active = (
            torch.zeros(shape, dtype=torch.long, device=where) for shape in ((batch_size, self.window), (batch_size,), (batch_size,))
        )
        return SMAState(self.ssm.init_state(batch_size, device=device), keys, values, places, position, active)  # type: ignore[operator]


@register
class BidirectionalSMA(SparseUnit):
    """The sparse unit looking both ways, on an average that does: see :class:`SparseUnit`, whose arguments it has.

    Shapes: (B, L, D) -> (B, L, D). No state: every output depends on the whole sequence.
    """

    reach = 2
    gathers_documents = True
    examples = ({"d_attn": 6, "d_hidden": 8, "d_state": 2, "window": 3, "max_positions": 5},)

    def average(self, d_state: int) -> Mixer:
        return BidirectionalEMA(self.d_model, d_state)

    def forward(self, x: Tensor, timeline: Timeline | None = None, *, bus: Bus | None = None) -> Tensor:
        check_shape("x", x, ("B", "L", self.d_model))
        batch, length = x.shape[:2]
        line = Timeline() if timeline is None else timeline.without_interval(type(self).__name__).expand(batch, length)
        m = hide(self.ssm(x, line), line).contiguous()
        h_x, weight, active = self.route(m)
        picked = self.pick(m, line, active, Sight.of(line, None, batch, length, x.device).position, None)
        h, _ = self.unit(picked, None)
        return hide(h_x + weight * extract(h, picked.sight, active), line)
