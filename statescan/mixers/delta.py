"""What the mixers of the delta rule share: projections, short convolutions, the op, a norm a head, and their state."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.layers import CausalConv1d, RMSNorm
from statescan.layers.linear import Linear
from statescan.ops import delta_rule
from statescan.ops.checks import check_positive, state_dtype
from statescan.protocols import Bus, CausalMixer
from statescan.state import state as declare_state
from statescan.timeline import Timeline, hide


@declare_state
class DeltaState(NamedTuple):
    """Float32. The convolutions' tails are their last existing inputs, oldest first."""

    q: Tensor
    """(B, K-1, H_k * key width)"""
    k: Tensor
    """(B, K-1, n * H_k * key width)"""
    v: Tensor
    """(B, K-1, n * H_v * value width)"""
    s: Tensor
    """(B, H_v, key width, value width)"""


class DeltaMixer(CausalMixer):
    """A subclass says how strongly a position writes, how fast the state decays, and what gates the output::

        q, k, v = silu(conv1d(q_proj(x))), ...           for n writes k and v are (n, heads, width)
        y       = delta_rule(q / |q|, k / |k|, v, beta, log_decay)
        out     = o_proj(RMSNorm(y) * gate)               the norm is over the value width of a head

    The key heads divide the value heads: consecutive value heads share a key. State: :class:`DeltaState`.
    """

    residual_outputs = ("o_proj",)
    state_type: ClassVar[type] = DeltaState

    def __init__(
        self, d_model: int, key_heads: int, value_heads: int, key_width: int, value_width: int, writes: int, conv_size: int, norm_eps: float
    ) -> None:
        super().__init__()
        check_positive(
            d_model=d_model, key_heads=key_heads, value_heads=value_heads, key_width=key_width, value_width=value_width, writes=writes,
            conv_size=conv_size,
        )  # fmt: skip
        if value_heads % key_heads:
            raise ValueError(f"the heads of the keys must divide those of the values; got {key_heads} and {value_heads}")
        self.d_model, self.num_writes, self.conv_size = d_model, writes, conv_size
        self.key_shape, self.value_shape = (key_heads, key_width), (value_heads, value_width)
        keys, values = key_heads * key_width, value_heads * value_width
        self.q_proj = Linear(d_model, keys, bias=False)
        self.k_proj = Linear(d_model, writes * keys, bias=False)
        self.v_proj = Linear(d_model, writes * values, bias=False)
        self.q_conv1d = CausalConv1d(keys, conv_size, bias=False, activation="silu")
        self.k_conv1d = CausalConv1d(writes * keys, conv_size, bias=False, activation="silu")
        self.v_conv1d = CausalConv1d(writes * values, conv_size, bias=False, activation="silu")
        self.o_norm = RMSNorm(value_width, norm_eps)
        self.o_proj = Linear(values, d_model, bias=False)

    @abstractmethod
    def rates(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """beta (B, L, n, H_v) and the logarithm of the decay (B, L, H_v), (B, L, H_v, K) or None."""

    @abstractmethod
    def gate(self, x: Tensor) -> Tensor | None:
        """What multiplies the normalised output, (B, L, H_v * value width)."""

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: DeltaState | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        if timeline is not None:
            timeline = timeline.without_interval(type(self).__name__)
        x = hide(x, timeline)
        q, q_tail = self.q_conv1d(self.q_proj(x), timeline, state=None if state is None else state.q)
        k, k_tail = self.k_conv1d(self.k_proj(x), timeline, state=None if state is None else state.k)
        v, v_tail = self.v_conv1d(self.v_proj(x), timeline, state=None if state is None else state.v)
        y, memory = self.recur(
            x, unit(q.unflatten(-1, self.key_shape)), unit(k.unflatten(-1, (self.num_writes, *self.key_shape))),
            v.unflatten(-1, (self.num_writes, *self.value_shape)), state, timeline,
        )  # fmt: skip
        y, gate = self.o_norm(y).flatten(-2), self.gate(x)
        y = hide(self.o_proj(y if gate is None else y * gate), timeline)
        return (y, self.state_type(q_tail, k_tail, v_tail, *memory)) if return_state else y

    def recur(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, state: Any, timeline: Timeline | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """q (B, L, H_k, K), k (B, L, n, H_k, K), v (B, L, n, H_v, V) -> y (B, L, H_v, V), and what follows the tails in the state."""
        y, s = delta_rule(q, k, v, *self.rates(x), state=None if state is None else state.s, timeline=timeline, return_state=True)
        return y, (s,)  # type: ignore[return-value]

    def empty(self, batch_size: int, **like: Any) -> tuple[Tensor, ...]:
        """What follows the tails in the first state."""
        heads, width = self.value_shape
        return (torch.zeros(batch_size, heads, self.key_shape[1], width, **like),)

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> DeltaState:
        """Zeros."""
        weight = self.o_proj.weight
        like: dict[str, Any] = {"device": weight.device if device is None else device, "dtype": state_dtype(weight)}
        widths = (conv.weight.shape[0] for conv in (self.q_conv1d, self.k_conv1d, self.v_conv1d))
        q, k, v = (torch.zeros(batch_size, self.conv_size - 1, width, **like) for width in widths)
        return self.state_type(q, k, v, *self.empty(batch_size, **like))  # type: ignore[no-any-return]


def unit(x: Tensor) -> Tensor:
    """x / sqrt(sum x^2 + 1e-6) over the last axis, computed in float32."""
    wide = x.to(state_dtype(x))
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + 1e-6)).to(x.dtype)


def strength(raw: Tensor, allow_neg_eigval: bool) -> Tensor:
    """sigmoid, in (0, 1) or (0, 2), in float32."""
    beta = torch.sigmoid(raw.to(state_dtype(raw)))
    return 2 * beta if allow_neg_eigval else beta


def head_decay(raw: Tensor, A_log: Tensor, dt_bias: Tensor) -> Tensor:
    """-exp(A_log) softplus(raw + dt_bias), in float32: the logarithm of a decay, as in Mamba-2."""
    dtype = state_dtype(raw)
    return -A_log.to(dtype).exp() * F.softplus(raw.to(dtype) + dt_bias.to(dtype))
