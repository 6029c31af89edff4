"""Log-linear attention in two layers: Mamba-2 and Gated DeltaNet whose queries weigh the scales of the past.

Paper: Guo, Yang, Goel, Xing, Dao and Kim, "Log-Linear Attention", 2025, https://arxiv.org/abs/2506.04761. Parameter names are those of the
released code (log-linear-attention, flash-linear-attention).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.layers import CausalConv1d, GatedRMSNorm, init_delta_bias
from statescan.layers.linear import Linear
from statescan.mixers.gated_deltanet import GatedDeltaNet
from statescan.mixers.gla import zeros_for
from statescan.ops import log_linear
from statescan.ops.checks import check_positive, state_dtype
from statescan.ops.positions import elapsed
from statescan.protocols import Bus, CausalMixer
from statescan.registry import register
from statescan.state import state as declare_state
from statescan.timeline import Timeline, hide


@declare_state
class LogLinearMamba2State(NamedTuple):
    """Float32."""

    conv: Tensor
    """(B, K-1, E + 2 G N): the last existing inputs of the short convolution, oldest first."""
    s: Tensor
    """(B, H, levels, N, P)"""
    position: Tensor
    """int64 (B,): existing positions since the last reset; where levels end depends on it."""


@declare_state
class LogLinearDeltaState(NamedTuple):
    """Float32."""

    q: Tensor
    k: Tensor
    v: Tensor
    """The convolutions' tails, as in :class:`~statescan.mixers.delta.DeltaState`."""
    s: Tensor
    """(B, H, levels, key width, value width)"""
    position: Tensor
    """int64 (B,): existing positions since the last reset."""


def levels_of(max_len: int) -> int:
    """Levels on which each position of a document of this length has a block of its own."""
    check_positive(max_len=max_len)
    return (max_len - 1).bit_length() + 1


def level_scale(raw: Tensor, L: Tensor) -> Tensor:
    """softplus(L * raw), positive, in float32: raw (B, L, H levels), L (H, levels)."""
    dtype = state_dtype(raw)
    return F.softplus(L.to(dtype) * raw.to(dtype).unflatten(-1, L.shape))


@register
class LogLinearMamba2(CausalMixer):
    """The mixer of Mamba-2, with the states of log-linear attention (:func:`statescan.ops.log_linear`) in place of its one::

        [z, xBC, dt, dl] = in_proj(u);   [x, B, C] = silu(conv1d(xBC));   delta = softplus(dt + dt_bias)
        y   = log_linear(q = C, k = B, v = delta x, lambda = softplus(L dl), g = delta A) + D x,   A = -exp(A_log), one a head
        out = out_proj(RMSNorm(y * silu(z)))

    Args:
        d_model: width D.
        d_state: states a channel, N.
        d_conv: taps of the short convolution, K.
        expand: inner width E = expand * d_model.
        headdim: channels a head, P.
        ngroups: groups of heads that share B and C, G.
        max_len: documents up to this length have all their levels apart; a longer one keeps on the last what is older. It sizes dl, L and
            the state: bit_length(max_len - 1) + 1 levels.
        dt_min, dt_max, dt_init_floor: initial steps are log-uniform between the two, and at least the last.
        bias: biases of in_proj and out_proj.
        conv_bias: bias of the convolution.
        norm_eps: of the gated norm.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`LogLinearMamba2State`. An interval multiplies delta.
    """

    has_time = True
    dynamics = ("A_log", "D", "L", "dt_bias")
    residual_outputs = ("out_proj",)
    examples = ({"d_state": 6, "headdim": 16, "ngroups": 2, "max_len": 64, "bias": True},)

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        expand: float = 2,
        headdim: int = 64,
        ngroups: int = 1,
        max_len: int = 16384,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        bias: bool = False,
        conv_bias: bool = True,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        check_positive(d_model=d_model, d_state=d_state, d_conv=d_conv, expand=expand, headdim=headdim, ngroups=ngroups)
        self.d_inner, self.d_state, self.d_conv, self.ngroups = int(expand * d_model), d_state, d_conv, ngroups
        if self.d_inner < 1 or self.d_inner % headdim or self.d_inner // headdim % ngroups:
            raise ValueError(
                f"headdim must divide the inner width {self.d_inner} into heads that ngroups divides; got {headdim} and {ngroups}"
            )
        self.headdim, self.nheads, self.levels = headdim, self.d_inner // headdim, levels_of(max_len)
        width = self.d_inner + 2 * ngroups * d_state
        self.in_proj = Linear(d_model, self.d_inner + width + self.nheads * (1 + self.levels), bias=bias)
        self.conv1d = CausalConv1d(width, d_conv, bias=conv_bias, activation="silu")
        self.dt_bias = nn.Parameter(init_delta_bias((self.nheads,), dt_min, dt_max, dt_init_floor))
        self.A_log = nn.Parameter(torch.arange(1.0, self.nheads + 1).log())
        self.L = nn.Parameter(torch.ones(self.nheads, self.levels))
        self.D = nn.Parameter(torch.ones(self.nheads))
        self.norm = GatedRMSNorm(self.d_inner, ngroups, norm_eps)
        self.out_proj = Linear(self.d_inner, d_model, bias=bias)

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: LogLinearMamba2State | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        line = Timeline() if timeline is None else timeline.expand(x.shape[0], x.shape[1])
        bc = self.ngroups * self.d_state
        z, xbc, delta_raw, dl = self.in_proj(hide(x, line)).split(
            [self.d_inner, self.d_inner + 2 * bc, self.nheads, self.nheads * self.levels], dim=-1
        )
        xbc, conv = self.conv1d(xbc, line, state=None if state is None else state.conv)
        v, B, C = xbc.split([self.d_inner, bc, bc], dim=-1)
        dtype = state_dtype(v)
        v, groups = v.unflatten(-1, (self.nheads, self.headdim)).to(dtype), (self.ngroups, self.d_state)
        delta = elapsed(delta_raw, self.dt_bias, True, None, line.interval, line.mask, dtype)
        y, (s, position) = log_linear(
            C.unflatten(-1, groups), B.unflatten(-1, groups), v * delta.unsqueeze(-1), level_scale(dl, self.L),
            -delta * self.A_log.exp().to(dtype), scale=1.0, state=None if state is None else (state.s, state.position),
            timeline=line._replace(interval=None), return_state=True,
        )  # fmt: skip
        y = (y + self.D.to(dtype).unsqueeze(-1) * v).flatten(-2).to(z.dtype)
        y = hide(self.out_proj(self.norm(y, z)), line)
        return (y, LogLinearMamba2State(conv, s, position)) if return_state else y

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> LogLinearMamba2State:
        """Zeros."""
        weight = self.A_log
        conv = zeros_for(weight, device, batch_size, self.d_conv - 1, self.conv1d.weight.shape[0])
        s = zeros_for(weight, device, batch_size, self.nheads, self.levels, self.d_state, self.headdim)
        return LogLinearMamba2State(conv, s, torch.zeros(batch_size, dtype=torch.long, device=s.device))


@register
class LogLinearGatedDeltaNet(GatedDeltaNet):
    """:class:`~statescan.mixers.gated_deltanet.GatedDeltaNet` with the states of log-linear attention, which all follow its transition::

        y_t = o_proj(RMSNorm(sum_l lambda_t^l (S_t^l)^T q_t / sqrt(K)) * silu(g_proj(x_t))),   lambda_t = softplus(L l_proj(x_t))

    Args:
        d_model: width D.
        num_heads: heads of queries and keys.
        head_dim: their width K.
        num_v_heads: heads of the values, a multiple of num_heads; None is num_heads.
        expand_v: value width a head is V = expand_v * head_dim.
        max_len: documents up to this length have all their levels apart; a longer one keeps on the last what is older. It sizes l_proj, L
            and the state: bit_length(max_len - 1) + 1 levels.
        use_gate: multiply the normalised output by silu(g_proj(x)).
        allow_neg_eigval: beta in (0, 2), so that the transition may have eigenvalues down to -1.
        conv_size: taps of the short convolutions.
        norm_eps: of the norm.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`LogLinearDeltaState`.
    """

    dynamics = ("A_log", "L", "dt_bias")  # type: ignore[assignment]
    state_type = LogLinearDeltaState
    examples = ({"num_heads": 2, "head_dim": 4, "num_v_heads": 4, "expand_v": 1, "max_len": 8, "allow_neg_eigval": True},)  # type: ignore[assignment]

    def __init__(
        self,
        d_model: int,
        num_heads: int = 6,
        head_dim: int = 256,
        num_v_heads: int | None = None,
        expand_v: float = 2.0,
        max_len: int = 16384,
        use_gate: bool = True,
        allow_neg_eigval: bool = False,
        conv_size: int = 4,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__(d_model, num_heads, head_dim, num_v_heads, expand_v, 1, use_gate, allow_neg_eigval, conv_size, norm_eps)
        heads, levels = self.value_shape[0], levels_of(max_len)
        self.l_proj = Linear(d_model, heads * levels, bias=False)
        self.L = nn.Parameter(torch.ones(heads, levels))

    def recur(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, state: Any, timeline: Timeline | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        beta, log_decay = self.rates(x)
        assert log_decay is not None
        y, last = log_linear(
            q, k.squeeze(2), v.squeeze(2), level_scale(self.l_proj(x), self.L), log_decay, beta.squeeze(2),
            state=None if state is None else (state.s, state.position), timeline=timeline, return_state=True,
        )  # fmt: skip
        return y, last  # type: ignore[return-value]

    def empty(self, batch_size: int, **like: Any) -> tuple[Tensor, ...]:
        heads, width = self.value_shape
        s = torch.zeros(batch_size, heads, self.L.shape[1], self.key_shape[1], width, **like)
        return s, torch.zeros(batch_size, dtype=torch.long, device=s.device)
