"""Multi-head latent attention: keys and values of all heads are read from one short vector a position, and that is what is cached.

Papers: DeepSeek-AI, "DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model", 2024,
https://arxiv.org/abs/2405.04434; Kimi Team, "Kimi Linear: An Expressive, Efficient Attention Architecture", 2025,
https://arxiv.org/abs/2510.26692, where no part has positions. Parameter names are those of the released checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from statescan.layers import RMSNorm
from statescan.layers.linear import Linear
from statescan.layers.rotary import rotate
from statescan.mixers.attention import Caching
from statescan.mixers.sight import Sight, attend, take
from statescan.ops.checks import check_positive
from statescan.protocols import Bus
from statescan.registry import register
from statescan.state import state as declare_state
from statescan.timeline import Timeline, hide


@declare_state
class LatentState(NamedTuple):
    """A cache of constant size C, in the layer's dtype; the newest entry stands last, and what is not filled yet is zero."""

    latents: Tensor
    """(B, C, 1, R + P'): the normed latent and the shared part of the key, rotated."""
    position: Tensor
    """int64 (B,): existing positions since the last reset. The last min(position, C) entries are filled."""


@declare_state
class GrowingLatentState(NamedTuple):
    """The same, but every call adds as many entries as it has positions."""

    latents: Tensor
    position: Tensor


@register
class MultiheadLatentAttention(Caching):
    """Causal attention whose H heads share a latent of R numbers a position, and P' channels of the key::

        [c, k'] = kv_a_proj_with_mqa(x);            [k_h, v_h] = kv_b_proj(RMSNorm(c))
        q       = q_proj(x), or q_b_proj(RMSNorm(q_a_proj(x))) with ``q_rank``;   q_h is [q_h (P), q'_h (P')]
        A_ts    = softmax over s <= t of the same document, of scale (q_h k_h + rotary(q'_h) rotary(k'))
        y       = o_proj(sum_s A_ts v_hs)                       times sigmoid(g_proj(x))_h with ``gate``

    Keys and values of what is cached are made anew by kv_b_proj at every call.

    Args:
        d_model: width D.
        num_heads: H.
        kv_rank: width of the latent, R.
        nope_dim: channels of a key that a head has of its own, P.
        rope_dim: channels of the key that all heads share, P'; 0 is none.
        value_dim: channels of a value.
        q_rank: rank of the queries; None is full.
        rotary_base: base of the angles by which the shared part turns (channel i with i + P' / 2); None is no positions.
        capacity: entries of the cache. None lets it grow, unless ``init_state`` is given a capacity.
        bias: biases of q_a_proj, kv_a_proj_with_mqa and o_proj.
        scale: of the products before the softmax; None is 1 / sqrt(P + P').
        norm_eps: of the norms of the latents.
        gate: each head's output is multiplied by a sigmoid of the input.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`LatentState`, or :class:`GrowingLatentState` without a capacity.
    """

    residual_outputs = ("o_proj",)
    states = (LatentState, GrowingLatentState)
    examples = (
        {"num_heads": 3, "kv_rank": 10, "nope_dim": 6, "rope_dim": 4, "value_dim": 5, "q_rank": 7, "rotary_base": 100.0, "capacity": 48,
         "bias": True, "gate": True},
        {"num_heads": 2, "kv_rank": 9, "nope_dim": 5, "rope_dim": 0, "value_dim": 7, "capacity": 48},
    )  # fmt: skip

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        kv_rank: int,
        nope_dim: int,
        rope_dim: int,
        value_dim: int,
        q_rank: int | None = None,
        rotary_base: float | None = None,
        capacity: int | None = None,
        bias: bool = False,
        scale: float | None = None,
        norm_eps: float = 1e-6,
        gate: bool = False,
    ) -> None:
        super().__init__()
        check_positive(d_model=d_model, num_heads=num_heads, kv_rank=kv_rank, nope_dim=nope_dim, value_dim=value_dim)
        check_positive(q_rank=1 if q_rank is None else q_rank, capacity=1 if capacity is None else capacity)
        if rope_dim < 0 or (rotary_base is not None and (rope_dim % 2 or not rope_dim)):
            raise ValueError(f"rope_dim must be even to turn, and not negative; got {rope_dim} with rotary_base={rotary_base}")
        self.num_heads, self.kv_rank, self.nope_dim, self.rope_dim, self.value_dim = num_heads, kv_rank, nope_dim, rope_dim, value_dim
        self.rotary_base, self.window, self.capacity = rotary_base, None, capacity
        self.scale = (nope_dim + rope_dim) ** -0.5 if scale is None else scale
        queries = num_heads * (nope_dim + rope_dim)
        if q_rank is None:
            self.q_proj = Linear(d_model, queries, bias=False)
        else:
            self.q_a_proj = Linear(d_model, q_rank, bias=bias)
            self.q_a_layernorm = RMSNorm(q_rank, norm_eps)
            self.q_b_proj = Linear(q_rank, queries, bias=False)
        self.q_rank = q_rank
        self.kv_a_proj_with_mqa = Linear(d_model, kv_rank + rope_dim, bias=bias)
        self.kv_a_layernorm = RMSNorm(kv_rank, norm_eps)
        self.kv_b_proj = Linear(kv_rank, num_heads * (nope_dim + value_dim), bias=False)
        self.g_proj = Linear(d_model, num_heads, bias=False) if gate else None
        self.o_proj = Linear(num_heads * value_dim, d_model, bias=bias)

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: LatentState | GrowingLatentState | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        if timeline is not None:
            timeline = timeline.without_interval(type(self).__name__)
        x = hide(x, timeline)
        batch, length = x.shape[:2]
        sight = Sight.of(timeline, None if state is None else state.position, batch, length, x.device)
        q = self.q_proj(x) if self.q_rank is None else self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        q = self._turn(q.unflatten(-1, (self.num_heads, -1)), self.nope_dim, sight)
        latent, shared = self.kv_a_proj_with_mqa(x).split([self.kv_rank, self.rope_dim], dim=-1)
        entry = torch.cat([self.kv_a_layernorm(latent), shared], -1).unsqueeze(2)
        (entries,) = self.slots(state, take(self._turn(entry, self.kv_rank, sight), sight.order))
        y = attend(q, *self._expand(entries), sight, None, self.scale)
        if self.g_proj is not None:
            y = y * torch.sigmoid(self.g_proj(x)).unsqueeze(-1)
        y = hide(self.o_proj(y.flatten(2)), timeline)
        return (y, self.after((entries,), sight, length, state)) if return_state else y

    def _turn(self, x: Tensor, start: int, sight: Sight) -> Tensor:
        """x (B, L, heads, start + P') with its last P' channels turned."""
        if self.rotary_base is None:
            return x
        turned = rotate(x[..., start:], sight.position, self.rotary_base, self.rope_dim)
        return torch.cat([x[..., :start], turned], -1)

    def _expand(self, entries: Tensor) -> tuple[Tensor, Tensor]:
        """Entries (B, C + L, 1, R + P') -> keys (B, C + L, H, P + P') and values."""
        latent, shared = entries.split([self.kv_rank, self.rope_dim], dim=-1)
        own, values = self.kv_b_proj(latent.squeeze(2)).unflatten(-1, (self.num_heads, -1)).split([self.nope_dim, self.value_dim], dim=-1)
        return torch.cat([own, shared.expand(-1, -1, self.num_heads, -1)], -1), values

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> LatentState | GrowingLatentState:
        """Nothing seen. ``capacity`` sizes the cache."""
        return self.nothing(batch_size, capacity, device, (1, self.kv_rank + self.rope_dim))
