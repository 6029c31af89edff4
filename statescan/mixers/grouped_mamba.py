"""Mamba shaped like grouped-query attention, so that an attention layer's weights can start it.

Papers: Wang et al., "The Mamba in the Llama: Distilling and Accelerating Hybrid Models", 2024, https://arxiv.org/abs/2408.15237;
Ostapenko et al., "Apriel-H1: Towards Efficient Enterprise Reasoning Models", 2025, https://arxiv.org/abs/2511.02651.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from statescan.layers import CausalConv1d, DeltaProjection, init_delta_bias
from statescan.layers.delta import raw_steps
from statescan.layers.linear import Linear
from statescan.mixers.mamba import MambaState
from statescan.ops import selective_scan
from statescan.ops.checks import check_positive, state_dtype
from statescan.protocols import Bus, CausalMixer
from statescan.registry import register
from statescan.timeline import Timeline, hide


@register
class GroupedMamba(CausalMixer):
    """A selective scan with heads: B, C and x stand where keys, queries and values do::

        [z, x, B, C] = in_proj(u)                     E, E', E', E channels: x and B have fewer heads, each repeated for its group
        x            = silu(conv1d(repeat(x)))
        delta        = softplus(dt_proj(dt_in_proj(u)))
        h_t          = exp(delta_t A) h_{t-1} + delta_t repeat(B)_t x_t,   A = -exp(A_log), in each head of N channels with N states
        y            = out_proj((C_t h_t + D x_t) * silu(z))

    With steps of one, no decay, no skip, no convolution and an open gate it is linear attention without a normaliser.

    Args:
        d_model: width D.
        d_inner: inner width E; heads are E / N.
        d_xb: width E' of x and B before they are repeated.
        d_state: channels and states a head, N.
        d_conv: taps of the short convolution, K.
        dt_rank: rank of the step's projection; "auto" is ceil(d_model / 16).
        dt_min, dt_max, dt_init_floor: initial steps are log-uniform between the two, and at least the last.
        conv_bias: bias of the convolution.
        bias: biases of in_proj and out_proj.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`MambaState`. An interval multiplies delta, as in Mamba.
    """

    has_time = True
    dynamics = ("A_log", "D")
    residual_outputs = ("out_proj",)
    examples = (
        {"d_inner": 24, "d_xb": 8, "d_state": 4},
        {"d_inner": 21, "d_xb": 21, "d_state": 7, "d_conv": 2, "bias": True, "conv_bias": False},
    )

    def __init__(
        self,
        d_model: int,
        d_inner: int,
        d_xb: int,
        d_state: int = 64,
        d_conv: int = 4,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__()
        check_positive(d_model=d_model, d_inner=d_inner, d_xb=d_xb, d_state=d_state, d_conv=d_conv)
        if d_inner % d_xb or d_xb % d_state:
            raise ValueError(f"d_state must divide d_xb, and d_xb d_inner; got {d_state}, {d_xb} and {d_inner}")
        self.d_model, self.d_inner, self.d_xb, self.d_state, self.d_conv = d_model, d_inner, d_xb, d_state, d_conv
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        check_positive(dt_rank=self.dt_rank)
        self.in_proj = Linear(d_model, 2 * d_inner + 2 * d_xb, bias=bias)
        self.conv1d = CausalConv1d(d_inner, d_conv, bias=conv_bias, activation="silu")
        self.dt_in_proj = Linear(d_model, self.dt_rank, bias=False)
        self.dt_proj = DeltaProjection(self.dt_rank, d_inner)
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        self.dt_proj.bias = nn.Parameter(init_delta_bias((d_inner,), dt_min, dt_max, dt_init_floor))
        self.A_log = nn.Parameter(torch.arange(1, d_state + 1, dtype=torch.float32).log().repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.out_proj = Linear(d_inner, d_model, bias=bias)

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: MambaState | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        u = hide(x, timeline)
        z, v, B, C = self.heads(u)
        v, conv = self.conv1d(v.flatten(2), timeline, state=None if state is None else state.conv)
        steps = raw_steps(self.dt_proj, self.dt_in_proj(u))
        y, ssm = selective_scan(
            v, steps.delta, -torch.exp(self.A_log), B, C, self.D, z=z, delta_weight=steps.weight, delta_bias=steps.bias,
            delta_softplus=True, state=None if state is None else state.ssm, timeline=timeline, return_state=True,
        )  # fmt: skip
        y = hide(self.out_proj(y), timeline)
        return (y, MambaState(conv, ssm)) if return_state else y

    def heads(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """z (B, L, E), and x, B, C (B, L, heads, N), those of a group repeated."""
        z, x, B, C = self.in_proj(u).split([self.d_inner, self.d_xb, self.d_xb, self.d_inner], dim=-1)
        x, B, C = (part.unflatten(-1, (-1, self.d_state)) for part in (x, B, C))
        repeats = self.d_inner // self.d_xb
        return z, x.repeat_interleave(repeats, dim=2), B.repeat_interleave(repeats, dim=2), C

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> MambaState:
        """Zeros."""
        like: dict[str, Any] = {"device": self.A_log.device if device is None else device, "dtype": state_dtype(self.A_log)}
        return MambaState(
            torch.zeros(batch_size, self.d_conv - 1, self.d_inner, **like), torch.zeros(batch_size, self.d_inner, self.d_state, **like)
        )
