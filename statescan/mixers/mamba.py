"""Mamba (S6): short convolution, selective scan and gate in one block.

Paper: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, https://arxiv.org/abs/2312.00752.
Parameter names are those of the released checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.layers import CausalConv1d, DeltaProjection, RMSNorm, init_delta_bias
from statescan.layers.delta import RawSteps, raw_steps
from statescan.layers.linear import Linear
from statescan.ops import rms_norm, selective_scan
from statescan.ops.checks import check_positive, check_range, state_dtype
from statescan.ops.parts import split
from statescan.protocols import Bus, CausalMixer
from statescan.registry import register
from statescan.state import state as declare_state
from statescan.timeline import Timeline, hide


@declare_state
class MambaState(NamedTuple):
    """Float32."""

    conv: Tensor
    """(B, K-1, E): the last existing inputs of the short convolution, oldest first."""
    ssm: Tensor
    """(B, E, N)"""


@register
class Mamba(CausalMixer):
    """The selective mixer of Mamba::

        [x, z]  = in_proj(u)
        x       = silu(conv1d(x))
        [r,B,C] = x_proj(x)
        delta   = softplus(dt_proj(r))
        h_t     = exp(delta_t A) h_{t-1} + delta_t B_t x_t,   A = -exp(A_log)
        y       = out_proj((C_t h_t + D x_t) * silu(z))

    ``bcdt_norm`` normalises r, B and C each by its root mean square: without weights in Falcon-Mamba (https://arxiv.org/abs/2410.05355),
    with weights in Jamba (https://arxiv.org/abs/2403.19887).

    Args:
        d_model: width D.
        d_state: states a channel, N.
        d_conv: taps of the short convolution, K.
        expand: inner width E = expand * d_model.
        dt_rank: rank of the step's projection; "auto" is ceil(d_model / 16).
        dt_min, dt_max: initial steps are log-uniform between them.
        dt_init: dt_proj's weight is uniform ("random") or constant.
        dt_scale: scale of that initialisation.
        dt_init_floor: initial steps are at least this.
        conv_bias: bias of the convolution.
        bias: biases of in_proj and out_proj.
        bcdt_norm: no norm of r, B and C, an RMS norm, or one with weights (dt_layernorm, b_layernorm, c_layernorm).
        norm_eps: of that norm.
        share: key of the bus under which C_t h_t + D x_t, before the gate, is left for layers above (:class:`GatedMemoryUnit`).
        A_init_range: -A of the N states starts evenly spaced over it; None is 1, 2, ..., N. With little of it and long steps, as in
            ``A_init_range=(0.01, 0.01), dt_min=0.5, dt_max=0.5``, a layer starts by keeping all that it reads, like linear attention, and
            learns to recall much sooner (https://arxiv.org/abs/2410.11135).

    Shapes: (B, L, D) -> (B, L, D). State: :class:`MambaState`. An interval multiplies delta; the input map is Euler's, so holding the
    input over two steps is not exactly one double step.
    """

    has_time = True
    dynamics = ("A_log", "D")
    residual_outputs = ("out_proj",)
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"d_state": 5, "d_conv": 1, "expand": 1.5, "bias": True, "conv_bias": False, "bcdt_norm": "rms_weighted"},
    )

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: Literal["random", "constant"] = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        bcdt_norm: Literal["none", "rms", "rms_weighted"] = "none",
        norm_eps: float = 1e-6,
        share: str | None = None,
        A_init_range: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        if bcdt_norm not in ("none", "rms", "rms_weighted"):
            raise ValueError(f"bcdt_norm must be 'none', 'rms' or 'rms_weighted'; got {bcdt_norm!r}")
        check_positive(d_model=d_model, d_state=d_state, d_conv=d_conv, expand=expand, d_inner=int(expand * d_model))
        if dt_rank != "auto":
            check_positive(dt_rank=dt_rank)
        self.d_model, self.d_state, self.d_conv, self.d_inner = d_model, d_state, d_conv, int(expand * d_model)
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        self.bcdt_norm, self.norm_eps, self.share = bcdt_norm, norm_eps, share
        self.writes = () if share is None else (share,)
        self.in_proj = Linear(d_model, 2 * self.d_inner, bias=bias)
        self.conv1d = CausalConv1d(self.d_inner, d_conv, bias=conv_bias, activation="silu")
        self.x_proj = Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)
        if bcdt_norm == "rms_weighted":
            self.dt_layernorm = RMSNorm(self.dt_rank, norm_eps)
            self.b_layernorm, self.c_layernorm = RMSNorm(d_state, norm_eps), RMSNorm(d_state, norm_eps)
        self.dt_proj = DeltaProjection(self.dt_rank, self.d_inner)
        scale = self.dt_rank**-0.5 * dt_scale
        if dt_init == "constant":
            nn.init.constant_(self.dt_proj.weight, scale)
        else:
            nn.init.uniform_(self.dt_proj.weight, -scale, scale)
        self.dt_proj.bias = nn.Parameter(init_delta_bias((self.d_inner,), dt_min, dt_max, dt_init_floor))
        if A_init_range is not None:
            check_range(A_init_range=A_init_range)
        decays = torch.arange(1, d_state + 1, dtype=torch.float32) if A_init_range is None else torch.linspace(*A_init_range, d_state)
        self.A_log = nn.Parameter(decays.log().repeat(self.d_inner, 1))
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = Linear(self.d_inner, d_model, bias=bias)

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: MambaState | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        (v, steps, B, C, z), conv = self.streams(x, timeline, state)
        y, ssm = self.recur(v, steps, B, C, z if self.share is None else None, timeline, state)
        if self.share is not None:
            if bus is not None:
                bus[self.share] = y
            y = y * F.silu(z)
        y = hide(self.out_proj(y), timeline)
        return (y, MambaState(conv, ssm)) if return_state else y

    def streams(
        self, u: Tensor, timeline: Timeline | None = None, state: MambaState | None = None
    ) -> tuple[tuple[Tensor, RawSteps, Tensor, Tensor, Tensor], Tensor]:
        """What enters the scan, ``(x, steps, B, C, z)``, and the convolution's tail."""
        x, z = split(self.in_proj(hide(u, timeline)), [self.d_inner, self.d_inner])
        x, conv = self.conv1d(x, timeline, state=None if state is None else state.conv)
        r, B, C = split(self.x_proj(x), [self.dt_rank, self.d_state, self.d_state])
        if self.bcdt_norm == "rms":
            r, B, C = (rms_norm(part, eps=self.norm_eps) for part in (r, B, C))
        elif self.bcdt_norm == "rms_weighted":
            r, B, C = self.dt_layernorm(r), self.b_layernorm(B), self.c_layernorm(C)
        return (x, raw_steps(self.dt_proj, r), B, C, z), conv

    def recur(
        self, x: Tensor, steps: RawSteps, B: Tensor, C: Tensor, z: Tensor | None, timeline: Timeline | None, state: MambaState | None
    ) -> tuple[Tensor, Tensor]:
        """The scan, gated where z is given: (B, L, E) and the last state."""
        return selective_scan(
            x, steps.delta, -torch.exp(self.A_log), B, C, self.D, z=z, delta_weight=steps.weight, delta_bias=steps.bias,
            delta_softplus=True, state=None if state is None else state.ssm, timeline=timeline, return_state=True,
        )  # type: ignore[return-value]  # fmt: skip

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
