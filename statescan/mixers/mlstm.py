"""The matrix LSTM as a layer: in the plain form of the large models, and in the original block with its convolution.

Papers: Beck et al., "xLSTM: Extended Long Short-Term Memory", 2024, https://arxiv.org/abs/2405.04517; Beck et al., "xLSTM 7B: A Recurrent
LLM for Fast and Efficient Inference", 2025, https://arxiv.org/abs/2503.13427.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.layers import CausalConv1d, DeltaProjection
from statescan.layers.grouped import BlockLinear
from statescan.layers.linear import Linear
from statescan.layers.norm import GroupLayerNorm
from statescan.mixers.deltanet import split_width
from statescan.mixers.gla import zeros_for
from statescan.ops import mlstm
from statescan.ops.checks import check_positive, state_dtype
from statescan.ops.mlstm import MatrixMemory
from statescan.protocols import Bus, CausalMixer
from statescan.registry import register
from statescan.state import state as declare_state
from statescan.timeline import Timeline, hide


@declare_state
class MLSTMState(NamedTuple):
    """Float32. C and n are divided by e^{m}."""

    C: Tensor
    """(B, H, key width, value width)"""
    n: Tensor
    """(B, H, key width)"""
    m: Tensor
    """(B, H)"""


@declare_state
class MLSTMBlockState(NamedTuple):
    """Float32. C and n are divided by e^{m}."""

    conv: Tensor
    """(B, K-1, E): the last existing inputs of the convolution, oldest first."""
    C: Tensor
    """(B, H, E/H, E/H)"""
    n: Tensor
    """(B, H, E/H)"""
    m: Tensor
    """(B, H)"""


@register
class MLSTM(CausalMixer):
    """The layer of xLSTM 7B. Per head, for the op :func:`~statescan.ops.mlstm.mlstm`::

        i = cap(igate_preact(x)),   f = cap(fgate_preact(x))                    cap(a) = c tanh(a / c)
        h = mlstm(q(x), k(x), v(x), i, f)
        y = out_proj(sigmoid(ogate_preact(x)) * multihead_norm(h))              a LayerNorm over each head

    Args:
        d_model: width D.
        num_heads: heads H.
        qk_dim_factor: key width a head is K = qk_dim_factor * D / H.
        v_dim_factor: value width a head is V = v_dim_factor * D / H.
        gate_soft_cap: bound c of the gates before their exponential and sigmoid; None is none.
        igate_bias_init: input gates at first.
        norm_eps: of the norm.
        eps: of the op's divisor.
        use_bias: biases of the projections and of the norm; the two gates have one in any case.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`MLSTMState`. Parameter names are those of the released checkpoints.
    """

    residual_outputs = ("out_proj",)
    examples = ({"num_heads": 4, "qk_dim_factor": 0.25, "v_dim_factor": 0.5, "igate_bias_init": 3.0, "use_bias": True},)

    def __init__(
        self,
        d_model: int,
        num_heads: int = 8,
        qk_dim_factor: float = 0.5,
        v_dim_factor: float = 1.0,
        gate_soft_cap: float | None = 15.0,
        igate_bias_init: float = -10.0,
        norm_eps: float = 1e-6,
        eps: float = 1e-6,
        use_bias: bool = False,
    ) -> None:
        super().__init__()
        check_positive(d_model=d_model, eps=eps, gate_soft_cap=1.0 if gate_soft_cap is None else gate_soft_cap)
        self.key_width = split_width("qk_dim_factor", d_model, qk_dim_factor, num_heads)
        self.value_width = split_width("v_dim_factor", d_model, v_dim_factor, num_heads)
        self.num_heads, self.gate_soft_cap, self.eps = num_heads, gate_soft_cap, eps
        keys, values = num_heads * self.key_width, num_heads * self.value_width
        self.q = Linear(d_model, keys, bias=use_bias)
        self.k = Linear(d_model, keys, bias=use_bias)
        self.v = Linear(d_model, values, bias=use_bias)
        self.ogate_preact = Linear(d_model, values, bias=use_bias)
        self.igate_preact = DeltaProjection(d_model, num_heads)
        self.fgate_preact = DeltaProjection(d_model, num_heads)
        self.multihead_norm = GroupLayerNorm(values, num_heads, norm_eps, bias=use_bias)
        self.out_proj = Linear(values, d_model, bias=use_bias)
        small_init(d_model, self.q, self.k, self.v, self.ogate_preact)
        init_gates(self.igate_preact, self.fgate_preact)
        nn.init.constant_(self.igate_preact.bias, igate_bias_init)

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: MLSTMState | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        if timeline is not None:
            timeline = timeline.without_interval(type(self).__name__)
        x, heads = hide(x, timeline), (self.num_heads, -1)
        q, k, v = (proj(x).unflatten(-1, heads) for proj in (self.q, self.k, self.v))
        i, f = self._cap(self.igate_preact(x)), self._cap(self.fgate_preact(x))
        h, last = mlstm(q, k, v, i, f, eps=self.eps, state=state, timeline=timeline, return_state=True)
        y = hide(self.out_proj(torch.sigmoid(self.ogate_preact(x)) * self.multihead_norm(h.flatten(-2))), timeline)
        return (y, MLSTMState(*last)) if return_state else y

    def _cap(self, raw: Tensor) -> Tensor:
        raw = raw.to(state_dtype(raw))
        return raw if self.gate_soft_cap is None else self.gate_soft_cap * torch.tanh(raw / self.gate_soft_cap)

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> MLSTMState:
        """Zeros."""
        return MLSTMState(*zero_memory(self.out_proj.weight, device, batch_size, self.num_heads, self.key_width, self.value_width))


class MLSTMCell(nn.Module):
    """Gates from queries, keys and values side by side, the op, and a LayerNorm over each head."""

    def __init__(self, width: int, num_heads: int, igate_bias_init: float, norm_eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.igate = DeltaProjection(3 * width, num_heads)
        self.fgate = DeltaProjection(3 * width, num_heads)
        self.outnorm = GroupLayerNorm(width, num_heads, norm_eps, offset=True)
        init_gates(self.igate, self.fgate)
        nn.init.normal_(self.igate.bias, igate_bias_init, 0.1)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, timeline: Timeline | None, state: MatrixMemory | None
    ) -> tuple[Tensor, MatrixMemory]:
        """q, k, v (B, L, E) -> (B, L, E) and the last state."""
        together = torch.cat([q, k, v], dim=-1)
        i, f = self.igate(together), self.fgate(together)
        q, k, v = (tensor.unflatten(-1, (self.num_heads, -1)) for tensor in (q, k, v))
        h, last = mlstm(q, k, v, i, f, state=state, timeline=timeline, return_state=True)
        return self.outnorm(h.flatten(-2)), last


@register
class MLSTMBlock(CausalMixer):
    """The block of the original xLSTM, with an inner width E and maps of one small block every few channels::

        u, z = proj_up(x)
        c    = silu(conv1d(u))
        h    = mlstm(q_proj(c), k_proj(c), v_proj(u), igate([q, k, v]), fgate([q, k, v]))
        y    = proj_down((LayerNorm(h) + learnable_skip * c) * silu(z))         the norm is over each head

    Args:
        d_model: width D.
        num_heads: heads H, a divisor of E.
        proj_factor: E = proj_factor * D, rounded up.
        round_proj_up_to_multiple_of: to a multiple of this.
        qkv_proj_blocksize: channels of a block of the maps of queries, keys and values, a divisor of E.
        conv1d_kernel_size: taps.
        igate_bias_init: input gates at first, on average.
        norm_eps: of the norm.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`MLSTMBlockState`. Parameter names are those of the public code, but for its
    ``conv1d.conv``, which is ``conv1d`` here.
    """

    residual_outputs = ("proj_down",)
    examples = (
        {
            "num_heads": 3, "proj_factor": 1.3, "round_proj_up_to_multiple_of": 12, "qkv_proj_blocksize": 6, "conv1d_kernel_size": 3,
            "igate_bias_init": 3.0,
        },
    )  # fmt: skip

    def __init__(
        self,
        d_model: int,
        num_heads: int = 4,
        proj_factor: float = 2.0,
        round_proj_up_to_multiple_of: int = 64,
        qkv_proj_blocksize: int = 4,
        conv1d_kernel_size: int = 4,
        igate_bias_init: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        check_positive(
            d_model=d_model, num_heads=num_heads, proj_factor=proj_factor, conv1d_kernel_size=conv1d_kernel_size,
            round_proj_up_to_multiple_of=round_proj_up_to_multiple_of, qkv_proj_blocksize=qkv_proj_blocksize,
        )  # fmt: skip
        width = math.ceil(proj_factor * d_model / round_proj_up_to_multiple_of) * round_proj_up_to_multiple_of
        for name, part in (("num_heads", num_heads), ("qkv_proj_blocksize", qkv_proj_blocksize)):
            if width % part:
                raise ValueError(f"{name} must divide the inner width; got {part} and {width}")
        self.num_heads, self.width = num_heads, width
        self.proj_up = Linear(d_model, 2 * width, bias=False)
        self.q_proj, self.k_proj, self.v_proj = (BlockLinear(width, width // qkv_proj_blocksize) for _ in range(3))
        self.conv1d = CausalConv1d(width, conv1d_kernel_size, activation="silu")
        self.mlstm_cell = MLSTMCell(width, num_heads, igate_bias_init, norm_eps)
        self.learnable_skip = nn.Parameter(torch.ones(width))
        self.proj_down = Linear(width, d_model, bias=False)
        small_init(d_model, self.proj_up, self.q_proj, self.k_proj, self.v_proj)

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: MLSTMBlockState | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        if timeline is not None:
            timeline = timeline.without_interval(type(self).__name__)
        u, z = self.proj_up(hide(x, timeline)).chunk(2, dim=-1)
        c, tail = self.conv1d(u, timeline, state=None if state is None else state.conv)
        h, last = self.mlstm_cell(self.q_proj(c), self.k_proj(c), self.v_proj(u), timeline, None if state is None else state[1:])
        y = hide(self.proj_down((h + self.learnable_skip * c) * F.silu(z)), timeline)
        return (y, MLSTMBlockState(tail, *last)) if return_state else y

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> MLSTMBlockState:
        """Zeros."""
        weight, part = self.proj_down.weight, self.width // self.num_heads
        tail = zeros_for(weight, device, batch_size, self.conv1d.weight.shape[2] - 1, self.width)
        return MLSTMBlockState(tail, *zero_memory(weight, device, batch_size, self.num_heads, part, part))


def small_init(d_model: int, *layers: nn.Linear | BlockLinear) -> None:
    """Weights of variance 2 / (5 D), biases of zero (Nguyen and Salazar, 2019)."""
    for layer in layers:
        nn.init.normal_(layer.weight, std=math.sqrt(2 / (5 * d_model)))
        if isinstance(layer, nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)


def init_gates(igate: nn.Linear, fgate: nn.Linear) -> None:
    """At first the gates know nothing of the input, and heads forget at different rates."""
    for gate in (igate, fgate):
        nn.init.zeros_(gate.weight)
    with torch.no_grad():
        fgate.bias.copy_(torch.linspace(3.0, 6.0, fgate.out_features))


def zero_memory(weight: Tensor, device: torch.device | str | None, batch: int, heads: int, keys: int, values: int) -> MatrixMemory:
    """C, n and m of zeros, for a layer with this weight."""
    return (
        zeros_for(weight, device, batch, heads, keys, values), zeros_for(weight, device, batch, heads, keys),
        zeros_for(weight, device, batch, heads),
    )  # fmt: skip
