"""A transformer block that many layers share, in front of each one's own mixer.

Papers: Glorioso et al., "Zamba: A Compact 7B SSM Hybrid Model", 2024, https://arxiv.org/abs/2405.16712, and "The Zamba2 Suite: Technical
Report", 2024, https://arxiv.org/abs/2411.15242. How layers come to share it: docs/decisions/0010-wiring-hybrids.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from statescan.blocks.residual import Residual
from statescan.layers import RMSNorm
from statescan.layers.linear import Linear
from statescan.layers.mlp import Activation, activate
from statescan.mixers.attention import Attention, AttentionState, GrowingAttentionState
from statescan.ops.checks import check_positive
from statescan.protocols import Bus, CausalMixer, State
from statescan.registry import register
from statescan.state import state as declare_state
from statescan.timeline import Timeline

EMBEDDING = "embedding"
"""Key of the bus: the stream (B, L, D) that the first layer read."""


@declare_state
class SharedBlockState(NamedTuple):
    """What a use of the shared block has seen, and the state of the layer's own mixer."""

    attention: AttentionState | GrowingAttentionState
    mixer: State


class LowRank(nn.Sequential):
    """(..., inputs) -> (..., outputs) through ``rank`` channels: what one use of a shared projection adds to it."""

    def __init__(self, inputs: int, rank: int, outputs: int) -> None:
        super().__init__(Linear(inputs, rank, bias=False), Linear(rank, outputs, bias=False))


class SharedBlock(nn.Module):
    """The parameters that all uses have in common: attention over width 2 D, an MLP over D, and the norms before both."""

    def __init__(
        self, d_model: int, num_heads: int, num_kv_heads: int | None, d_ff: int, rotary_base: float | None, capacity: int | None,
        activation: Activation, bias: bool, norm_eps: float,
    ) -> None:  # fmt: skip
        super().__init__()
        wide = 2 * d_model
        check_positive(d_model=d_model, num_heads=num_heads)
        if wide % num_heads:
            raise ValueError(f"num_heads must divide twice the width, {wide}; got {num_heads}")
        self.norm = RMSNorm(wide, norm_eps)
        # The scale is that of heads half as wide: the other half of the input is the embedding.
        self.attention = Attention(
            wide, num_heads, num_kv_heads, capacity=capacity, rotary_base=rotary_base, scale=(wide / num_heads / 2) ** -0.5,
            out_features=d_model,
        )  # fmt: skip
        self.mlp_norm = RMSNorm(d_model, norm_eps)
        self.activation: Activation = activation
        self.gate_proj = Linear(d_model, d_ff, bias=bias)
        self.up_proj = Linear(d_model, d_ff, bias=bias)
        self.down_proj = Linear(d_ff, d_model, bias=bias)

    def forward(
        self, x: Tensor, timeline: Timeline | None, state: State | None, adapters: nn.ModuleDict, gate_up: nn.Module | None
    ) -> tuple[Tensor, State]:
        """Stream and embedding (B, L, 2 D), and what this use adds to the projections -> (B, L, D), and the attention's state."""
        c = self.norm(x)
        plus = {name: adapter(c) for name, adapter in adapters.items()}
        a, state = self.attention(c, timeline, state=state, return_state=True, plus=plus)
        h = self.mlp_norm(a)
        gate, up = self.gate_proj(h), self.up_proj(h)
        if gate_up is not None:
            more, most = gate_up(h).chunk(2, dim=-1)
            gate, up = gate + more, up + most
        return self.down_proj(activate(gate, self.activation) * up), state


@register
class SharedBlockLayer(Residual):
    """A layer of a hybrid that consults a shared transformer block before its own mixer. All layers of a backbone that have the same
    letter are uses of the same block; what is their own: the mixer, its norm, ``output`` and low-rank additions to the projections::

        c  = norm_2D([x | e])                          e: the stream that the first layer read
        a  = attention(c)                              q, k, v plus low-rank terms of this use, where asked for
        t  = output(mlp(norm_D(a)))                    gate and up plus a low-rank term of this use
        x <- x + mixer(norm(x + t))                    no residual inside the block; t never enters the stream

    Args:
        d_model: width D.
        mixer: factory of the layer's own causal mixer, given the width.
        num_heads: heads of the attention, of 2 D / num_heads channels; the scale is that of half as many.
        num_kv_heads: key and value heads; None is ``num_heads``.
        d_ff: inner width of the MLP.
        rank: of the low-rank terms; None is none of them, as in the first Zamba.
        adapt_attention: low-rank terms of queries, keys and values too.
        rotary_base: base of the rotary angles; None is no positions.
        capacity: entries of the attention's cache; None lets it grow.
        activation: of the MLP.
        bias: biases of the MLP.
        norm_eps: of every norm.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`SharedBlockState`.
    """

    shared = ("block",)

    def __init__(
        self,
        d_model: int,
        mixer: Callable[[int], CausalMixer],
        num_heads: int,
        d_ff: int,
        num_kv_heads: int | None = None,
        rank: int | None = 128,
        adapt_attention: bool = False,
        rotary_base: float | None = None,
        capacity: int | None = None,
        activation: Activation = "gelu",
        bias: bool = False,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__(d_model, mixer(d_model), norm_eps)
        check_positive(d_ff=d_ff)
        if rank is not None:
            check_positive(rank=rank)
        elif adapt_attention:
            raise ValueError("adapt_attention needs a rank; got None")
        if not isinstance(self.mixer, CausalMixer):
            raise ValueError(f"mixer must be causal; got {type(self.mixer).__name__}")
        self.block = SharedBlock(d_model, num_heads, num_kv_heads, d_ff, rotary_base, capacity, activation, bias, norm_eps)
        self.gate_up = None if rank is None else LowRank(d_model, rank, 2 * d_ff)
        self.adapters = nn.ModuleDict()
        if rank is not None and adapt_attention:
            widths = {name: getattr(self.block.attention, f"{name}_proj").out_features for name in ("q", "k", "v")}
            self.adapters.update({name: LowRank(2 * d_model, rank, width) for name, width in widths.items()})
        self.output = Linear(d_model, d_model, bias=False)

    def forward(
        self, x: Tensor, timeline: Timeline | None = None, *, state: State | None = None, bus: Bus | None = None
    ) -> tuple[Tensor, State]:
        """The new stream and the new state."""
        if bus is None or EMBEDDING not in bus:
            raise ValueError(f"SharedBlockLayer reads {EMBEDDING!r} from the bus: use it as a part of a FlatBackbone")
        seen, mixed = (None, None) if state is None else state
        both = torch.cat([x, bus[EMBEDDING].to(x.dtype)], dim=-1)
        told, seen = self.block(both, timeline, seen, self.adapters, self.gate_up)
        h = self.norm(x + self.output(told).to(x.dtype))
        y, mixed = self.mixer(h, timeline, state=mixed, return_state=True, bus=bus)
        return x + y.to(x.dtype), SharedBlockState(seen, mixed)

    def init_state(self, batch_size: int, **where: Any) -> State:
        """Nothing seen, and the mixer's."""
        block: Any = self.block
        return SharedBlockState(block.attention.init_state(batch_size, **where), super().init_state(batch_size, **where))
