"""Softmax attention under a timeline: grouped queries, a sliding window, rotary positions, a key-value cache as state.

Papers: Vaswani et al., "Attention Is All You Need", 2017, https://arxiv.org/abs/1706.03762; Ainslie et al., "GQA", 2023,
https://arxiv.org/abs/2305.13245; Ye et al., "Differential Transformer", 2024, https://arxiv.org/abs/2410.05258.
How resets, masks and the cache work together: docs/decisions/0007-attention-under-timeline.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from statescan.layers import OffsetRMSNorm, RMSNorm
from statescan.layers.linear import Linear
from statescan.layers.rotary import rotate
from statescan.mixers.sight import Shared, Sight, attend, remember, take
from statescan.ops.checks import check_positive
from statescan.parameters import Dynamic
from statescan.protocols import Bus, CausalMixer, State
from statescan.registry import register
from statescan.state import state as declare_state
from statescan.timeline import Timeline, hide


@declare_state
class AttentionState(NamedTuple):
    """A cache of constant size C, in the layer's dtype; the newest entry stands last, and what is not filled yet is zero."""

    keys: Tensor
    """(B, C, Hkv, P), rotated."""
    values: Tensor
    """(B, C, Hkv, P)"""
    position: Tensor
    """int64 (B,): existing positions since the last reset. The last min(position, C) entries are filled."""


@declare_state
class GrowingAttentionState(NamedTuple):
    """The same, but every call adds as many entries as it has positions."""

    keys: Tensor
    values: Tensor
    position: Tensor

    def trim(self) -> GrowingAttentionState:
        """The entries that the row with the most of them has filled."""
        first = self.keys.shape[1] - int(self.position.max())
        return GrowingAttentionState(self.keys[:, first:], self.values[:, first:], self.position)


def head_sizes(d_model: int, num_heads: int, num_kv_heads: int | None, head_dim: int | None) -> tuple[int, int, int]:
    """(H, Hkv, P), checked."""
    kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    check_positive(d_model=d_model, num_heads=num_heads, num_kv_heads=kv_heads, head_dim=1 if head_dim is None else head_dim)
    if num_heads % kv_heads:
        raise ValueError(f"num_kv_heads must divide num_heads; got {kv_heads} and {num_heads}")
    if head_dim is None and d_model % num_heads:
        raise ValueError(f"num_heads must divide d_model={d_model}, or head_dim be given; got {num_heads}")
    return num_heads, kv_heads, d_model // num_heads if head_dim is None else head_dim


class Difference(Dynamic):
    """The difference of the two maps of a pair of heads, normalised."""

    dynamics = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")
    lambda_q1: nn.Parameter
    lambda_k1: nn.Parameter
    lambda_q2: nn.Parameter
    lambda_k2: nn.Parameter

    def __init__(self, num_heads: int, num_kv_heads: int, head_dim: int, lambda_init: float, eps: float) -> None:
        super().__init__()
        if num_heads % 2 or num_kv_heads % 2:
            raise ValueError(f"differential attention pairs heads: both counts must be even; got {num_heads} and {num_kv_heads}")
        self.lambda_init = lambda_init
        for name in self.dynamics:
            setattr(self, name, nn.Parameter(torch.randn(head_dim) * 0.1))
        self.subln = RMSNorm(2 * head_dim, eps)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The pairs' readings (B, L, H / 2, 2 P) by their first and second maps -> (B, L, H / 2, 2 P)."""
        one, other = (self.lambda_q1 * self.lambda_k1).sum().exp(), (self.lambda_q2 * self.lambda_k2).sum().exp()
        weight = (one - other + self.lambda_init).to(first.dtype)
        return self.subln(first - weight * second) * (1 - self.lambda_init)


def see(difference: nn.Module | None, q: Tensor, k: Tensor, v: Tensor, sight: Sight, window: int | None, scale: float) -> Tensor:
    """Attention of (B, L, H, P), plain or differential, to (B, L, *, *) with H P values a position."""
    if difference is None:
        return attend(q, k, v, sight, window, scale)
    pairs = v.unflatten(2, (-1, 2)).flatten(-2)
    return difference(*(attend(q[:, :, i::2], k[:, :, i::2], pairs, sight, window, scale) for i in (0, 1)))


class Caching(CausalMixer):
    """A mixer that keeps entries (heads, width) of the positions that it has seen: of all, of a window, or as many as fit."""

    states: ClassVar[tuple[type, type]] = (AttentionState, GrowingAttentionState)
    """Of constant size, and growing; the entries come first, then ``position``."""
    window: int | None
    capacity: int | None

    def slots(self, state: State | None, *entries: Tensor) -> list[Tensor]:
        """The cached entries, followed by those of the call (B, L, H, P), which stand in slots."""
        if state is None:
            return list(entries)
        return [torch.cat([old.to(new.dtype), new], 1) for old, new in zip(state, entries, strict=False)]

    def after(self, slots: Sequence[Tensor], sight: Sight, length: int, state: State | None) -> State:
        """The state behind the last of ``length`` positions."""
        constant, growing = self.states
        if isinstance(state, constant):
            capacity = slots[0].shape[1] - length
        elif state is None and self.window is not None:
            capacity = self.window - 1
        elif state is None and self.capacity is not None:
            capacity = self.capacity
        else:
            return growing(*(remember(entry, length, sight, entry.shape[1]) for entry in slots), sight.last)
        # A traced graph cannot look at values (the meta device has none): there the caller counts.
        blind = torch.compiler.is_compiling() or sight.last.is_meta
        if self.window is None and not blind and bool((sight.last > capacity).any()):
            raise ValueError(
                f"the cache holds {capacity} positions and a row has {int(sight.last.max())}: give init_state a larger capacity"
            )
        return constant(*(remember(entry, length, sight, capacity) for entry in slots), sight.last)

    def nothing(self, batch_size: int, capacity: int | None, device: torch.device | str | None, *entries: tuple[int, int]) -> State:
        """The state before the first position, for entries of these (heads, width)."""
        # Where every projection is quantised there is no float parameter, and activations are float32.
        like = next((p for p in self.parameters() if p.is_floating_point()), None)
        dtype = torch.float32 if like is None else like.dtype
        where = (next(self.buffers()) if like is None else like).device if device is None else device
        size = self.window - 1 if self.window is not None else self.capacity if capacity is None else capacity
        empty = (torch.zeros(batch_size, size or 0, *entry, dtype=dtype, device=where) for entry in entries)
        return self.states[size is None](*empty, torch.zeros(batch_size, dtype=torch.long, device=where))


@register
class Attention(Caching):
    """Causal attention, H heads of P channels over Hkv heads of keys and values::

        q, k, v = q_proj(x), k_proj(x), v_proj(x)
        q, k    = rotary(q_norm(q)), rotary(k_norm(k))         where asked for
        A_ts    = softmax over s <= t of the same document, t - s < window, of scale q_t k_s
        y       = o_proj(sum_s A_ts v_s)

    ``gate`` multiplies o_proj's input by sigmoid(g), where q_proj yields ``[q | g]`` head by head. ``lambda_init`` makes it differential:
    neighbouring heads are a pair, and the pair's output is (1 - lambda_init) subln((A1 - lambda A2) [v1 | v2]) with
    lambda = exp(lambda_q1 . lambda_k1) - exp(lambda_q2 . lambda_k2) + lambda_init.

    Args:
        d_model: width D.
        num_heads: query heads, H.
        num_kv_heads: key and value heads, Hkv; None is H.
        head_dim: channels a head, P; None is d_model / H.
        window: keys that a query sees, its own among them; None is all.
        capacity: entries of the cache of a layer without a window. None lets it grow, unless ``init_state`` is given a capacity.
        rotary_base: base of the rotary angles; None is no positions.
        rotary_dim: channels of a head that turn; None is all.
        qk_norm: RMS norm of each head's query and key; "offset" scales it by 1 + weight; "whole" is one norm over all heads.
        norm_eps: of every norm here.
        bias: biases of q_proj, k_proj and v_proj.
        out_bias: bias of o_proj.
        scale: of the products before the softmax; None is 1 / sqrt(P).
        gate: gated output.
        lambda_init: differential attention with this constant.
        share: key of the bus under which keys and values are left for layers above (:class:`CrossAttention`).
        out_features: width of what o_proj gives; None is D.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`AttentionState`, or :class:`GrowingAttentionState` without window and capacity.
    """

    residual_outputs = ("o_proj",)
    examples = (
        {"num_heads": 4, "num_kv_heads": 2, "window": 8, "gate": True, "bias": True, "qk_norm": "whole"},
        {"num_heads": 4, "capacity": 48, "qk_norm": True, "rotary_dim": 4, "out_bias": True},
        {"num_heads": 4, "num_kv_heads": 2, "head_dim": 10, "window": 9, "lambda_init": 0.3, "rotary_base": None, "qk_norm": "offset"},
    )

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        window: int | None = None,
        capacity: int | None = None,
        rotary_base: float | None = 10000.0,
        rotary_dim: int | None = None,
        qk_norm: bool | Literal["offset", "whole"] = False,
        norm_eps: float = 1e-5,
        bias: bool = False,
        out_bias: bool = False,
        scale: float | None = None,
        gate: bool = False,
        lambda_init: float | None = None,
        share: str | None = None,
        out_features: int | None = None,
    ) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = head_sizes(d_model, num_heads, num_kv_heads, head_dim)
        self.rotary_base, self.rotary_dim = rotary_base, self.head_dim if rotary_dim is None else rotary_dim
        if rotary_base is not None and (self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.head_dim):
            raise ValueError(f"rotary_dim must be even and lie in 2..{self.head_dim} (head_dim); got {self.rotary_dim}")
        if window is not None and capacity is not None:
            raise ValueError(f"a window of {window} keys fixes the cache's size: leave capacity out; got {capacity}")
        check_positive(window=1 if window is None else window, capacity=1 if capacity is None else capacity)
        self.window, self.capacity, self.share, self.gate = window, capacity, share, gate
        self.writes = () if share is None else (share,)
        self.scale = self.head_dim**-0.5 if scale is None else scale
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.q_proj = Linear(d_model, queries * (2 if gate else 1), bias=bias)
        self.k_proj = Linear(d_model, keys, bias=bias)
        self.v_proj = Linear(d_model, keys, bias=bias)
        self.norms_heads, norm = qk_norm != "whole", OffsetRMSNorm if qk_norm == "offset" else RMSNorm
        self.q_norm = norm(self.head_dim if self.norms_heads else queries, norm_eps) if qk_norm else None
        self.k_norm = norm(self.head_dim if self.norms_heads else keys, norm_eps) if qk_norm else None
        heads = (self.num_heads, self.num_kv_heads, self.head_dim)
        self.difference = None if lambda_init is None else Difference(*heads, lambda_init, norm_eps)
        self.o_proj = Linear(queries, d_model if out_features is None else out_features, bias=out_bias)

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: AttentionState | GrowingAttentionState | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
        plus: Mapping[str, Tensor] | None = None,
    ) -> Any:
        """``plus`` holds terms that are added to what q_proj, k_proj and v_proj give, by "q", "k" and "v": adapters of a shared layer."""
        if timeline is not None:
            timeline = timeline.without_interval(type(self).__name__)
        x = hide(x, timeline)
        batch, length = x.shape[:2]
        sight = Sight.of(timeline, None if state is None else state.position, batch, length, x.device)
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if plus is not None:
            q, k, v = (t + plus[name] if name in plus else t for name, t in (("q", q), ("k", k), ("v", v)))
        gate, q = None, q.unflatten(-1, (self.num_heads, -1))
        if self.gate:
            q, gate = q.chunk(2, dim=-1)
        k, v = (t.unflatten(-1, (self.num_kv_heads, self.head_dim)) for t in (k, v))
        if self.q_norm is not None and self.k_norm is not None:
            if self.norms_heads:
                q, k = self.q_norm(q), self.k_norm(k)
            else:
                q, k = (norm(t.flatten(2)).view_as(t) for norm, t in ((self.q_norm, q), (self.k_norm, k)))
        if self.rotary_base is not None:
            q, k = (rotate(t, sight.position, self.rotary_base, self.rotary_dim) for t in (q, k))
        k, v = self.slots(state, take(k, sight.order), take(v, sight.order))
        if self.share is not None and bus is not None:
            rotary = None if self.rotary_base is None else (self.rotary_base, self.rotary_dim)
            bus[self.share] = Shared(k, v, sight, self.window, rotary)
        y = see(self.difference, q, k, v, sight, self.window, self.scale).flatten(2)
        if gate is not None:
            y = y * torch.sigmoid(gate.flatten(2))
        y = hide(self.o_proj(y), timeline)
        return (y, self.after((k, v), sight, length, state)) if return_state else y

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> AttentionState | GrowingAttentionState:
        """Nothing seen. ``capacity`` sizes the cache of a layer without a window; that of a window holds window - 1 keys."""
        entry = (self.num_kv_heads, self.head_dim)
        return self.nothing(batch_size, capacity, device, entry, entry)
