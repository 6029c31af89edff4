"""Mamba-2 (SSD): one decay a head, so that the scan is a matrix product by chunks and states can be large.

Paper: Dao and Gu, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space Duality", 2024,
https://arxiv.org/abs/2405.21060. Parameter names are those of the released checkpoints.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.layers import CausalConv1d, GatedRMSNorm, init_delta_bias
from statescan.layers.linear import Linear
from statescan.ops import ssd
from statescan.ops.checks import check_positive, check_range, state_dtype
from statescan.ops.parts import split
from statescan.protocols import Bus, CausalMixer
from statescan.registry import register
from statescan.state import state as declare_state
from statescan.timeline import Timeline, hide


@declare_state
class Mamba2State(NamedTuple):
    """Float32."""

    conv: Tensor
    """(B, K-1, E + 2 G N): the last existing inputs of the short convolution, oldest first."""
    ssm: Tensor
    """(B, H, P, N)"""


@register
class Mamba2(CausalMixer):
    """The mixer of Mamba-2::

        [z, xBC, dt] = in_proj(u)
        [x, B, C]    = silu(conv1d(xBC))
        delta        = clamp(softplus(dt + dt_bias), dt_limit)
        H_t          = exp(delta_t A) H_{t-1} + delta_t x_t B_t^T,   A = -exp(A_log), one a head
        y            = out_proj(RMSNorm((H_t C_t + D x_t) * silu(z)))

    Args:
        d_model: width D.
        d_state: states a channel, N.
        d_conv: taps of the short convolution, K.
        expand: inner width E = expand * d_model.
        headdim: channels a head, P. None is 64, or the largest divisor of the width below it (with a warning).
        d_ssm: channels that pass through the scan; the other E - d_ssm form a gated MLP beside it. None is E.
        ngroups: groups of heads that share B and C, G.
        A_init_range: A starts uniform in -A_init_range.
        D_has_hdim: one skip weight a channel rather than a head.
        rmsnorm: normalise after the gate; without it the gate alone.
        norm_before_gate: RMSNorm(y) * silu(z) instead.
        dt_min, dt_max, dt_init_floor: initial steps are log-uniform between the two, and at least the last.
        dt_limit: clamp of the step.
        bias: biases of in_proj and out_proj.
        conv_bias: bias of the convolution.
        conv_init: the convolution's weight starts uniform in [-conv_init, conv_init]; None is torch's default.
        chunk_size: positions a chunk; an implementation may choose smaller ones.
        learnable_init_states: train the initial state.
        norm_eps: of the gated norm.
        multipliers: fixed factors of the parts z, x, B, C and dt of in_proj's output, in this order (Falcon-H1's mup vector).
        share: key of the bus under which H_t C_t + D x_t, before the gate, is left for layers above (:class:`GatedMemoryUnit`).

    Shapes: (B, L, D) -> (B, L, D). State: :class:`Mamba2State`. An interval multiplies delta; the input map is Euler's, so holding the
    input over two steps is not exactly one double step.
    """

    has_time = True
    dynamics = ("A_log", "D", "dt_bias", "init_states")
    residual_outputs = ("out_proj",)
    examples = (
        {"d_state": 16, "headdim": 8, "ngroups": 2},
        {"d_state": 7, "headdim": 16, "d_conv": 3, "D_has_hdim": True, "rmsnorm": False, "bias": True, "chunk_size": 4,
         "learnable_init_states": True, "multipliers": (0.5, 1.5, 0.75, 1.25, 0.5)},
    )  # fmt: skip

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        expand: float = 2,
        headdim: int | None = None,
        d_ssm: int | None = None,
        ngroups: int = 1,
        A_init_range: tuple[float, float] = (1.0, 16.0),
        D_has_hdim: bool = False,
        rmsnorm: bool = True,
        norm_before_gate: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = (0.0, float("inf")),
        bias: bool = False,
        conv_bias: bool = True,
        conv_init: float | None = None,
        chunk_size: int = 256,
        learnable_init_states: bool = False,
        norm_eps: float = 1e-5,
        multipliers: tuple[float, float, float, float, float] | None = None,
        share: str | None = None,
    ) -> None:
        super().__init__()
        check_positive(d_model=d_model, d_state=d_state, d_conv=d_conv, expand=expand, ngroups=ngroups, chunk_size=chunk_size)
        check_positive(d_inner=int(expand * d_model))
        check_range(A_init_range=A_init_range)
        d_inner = int(expand * d_model)
        self.d_model, self.d_state, self.d_conv, self.ngroups = d_model, d_state, d_conv, ngroups
        self.share, self.writes = share, () if share is None else (share,)
        self.d_ssm = d_inner if d_ssm is None else d_ssm
        if not 0 < self.d_ssm <= d_inner:
            raise ValueError(f"d_ssm must lie in 1..{d_inner} (expand * d_model); got {d_ssm}")
        self.d_mlp = d_inner - self.d_ssm
        self.headdim = self._headdim(headdim)
        self.nheads = self.d_ssm // self.headdim
        if self.nheads % ngroups:
            raise ValueError(f"ngroups must divide the {self.nheads} heads (d_ssm / headdim); got {ngroups}")
        self.dt_limit, self.chunk_size = (float(dt_limit[0]), float(dt_limit[1])), chunk_size
        self.rmsnorm, self.multipliers = rmsnorm, None if multipliers is None else tuple(float(m) for m in multipliers)
        if self.multipliers is not None and len(self.multipliers) != 5:
            raise ValueError(f"multipliers are five numbers, for z, x, B, C and dt; got {multipliers}")
        width = self.d_ssm + 2 * ngroups * d_state
        self.in_proj = Linear(d_model, 2 * self.d_mlp + self.d_ssm + width + self.nheads, bias=bias)
        self.conv1d = CausalConv1d(width, d_conv, bias=conv_bias, activation="silu")
        if conv_init is not None:
            nn.init.uniform_(self.conv1d.weight, -conv_init, conv_init)
        self.dt_bias = nn.Parameter(init_delta_bias((self.nheads,), dt_min, dt_max, dt_init_floor))
        self.A_log = nn.Parameter(torch.empty(self.nheads).uniform_(*A_init_range).log())
        self.D = nn.Parameter(torch.ones(self.d_ssm if D_has_hdim else self.nheads))
        self.init_states = nn.Parameter(torch.zeros(self.nheads, self.headdim, d_state)) if learnable_init_states else None
        self.norm = GatedRMSNorm(self.d_ssm, ngroups, norm_eps, norm_before_gate) if rmsnorm else None
        self.out_proj = Linear(d_inner, d_model, bias=bias)

    def _headdim(self, headdim: int | None) -> int:
        if headdim is None:
            headdim = next(p for p in range(min(64, self.d_ssm), 0, -1) if self.d_ssm % p == 0)
            if headdim != 64:
                warnings.warn(f"headdim=64 does not divide the inner width {self.d_ssm}: using headdim={headdim}", stacklevel=4)
        if headdim < 1 or self.d_ssm % headdim:
            legal = [p for p in range(1, self.d_ssm + 1) if self.d_ssm % p == 0]
            raise ValueError(f"headdim must divide the inner width {self.d_ssm}; got {headdim}: choose one of {legal}, or None")
        return headdim

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: Mamba2State | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        (v, delta_raw, B, C, z), conv, mlp = self.streams(x, timeline, state)
        y, ssm = self.recur(v, delta_raw, B, C, timeline, state)
        if self.share is not None and bus is not None:
            bus[self.share] = y.flatten(-2)
        y = hide(self.finish(y, z, mlp), timeline)
        return (y, Mamba2State(conv, ssm)) if return_state else y

    def streams(
        self, u: Tensor, timeline: Timeline | None = None, state: Mamba2State | None = None
    ) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor, Tensor]:
        """What enters the scan, ``(x (B, L, H, P), delta_raw, B, C (B, L, G, N), z)``; the convolution's tail; the gated MLP's output."""
        bc = self.ngroups * self.d_state
        sizes = [self.d_mlp, self.d_mlp, self.d_ssm, self.d_ssm + 2 * bc, self.nheads]
        z0, x0, z, xbc, delta_raw = split(self.in_proj(hide(u, timeline)), sizes)
        if self.multipliers is not None:
            of_z, *of_xbc, of_dt = self.multipliers
            z, delta_raw = z * of_z, delta_raw * of_dt
            xbc = torch.cat([part * m for part, m in zip(xbc.split([self.d_ssm, bc, bc], dim=-1), of_xbc, strict=True)], dim=-1)
        xbc, conv = self.conv1d(xbc, timeline, state=None if state is None else state.conv)
        x, B, C = split(xbc, [self.d_ssm, bc, bc])
        heads, groups = (self.nheads, self.headdim), (self.ngroups, self.d_state)
        return (x.unflatten(-1, heads), delta_raw, B.unflatten(-1, groups), C.unflatten(-1, groups), z), conv, F.silu(z0) * x0

    def recur(
        self, x: Tensor, delta_raw: Tensor, B: Tensor, C: Tensor, timeline: Timeline | None, state: Mamba2State | None
    ) -> tuple[Tensor, Tensor]:
        """The scan: (B, L, H, P) and the last state."""
        initial = state.ssm if state is not None else None if self.init_states is None else self.init_states
        return ssd(
            x, delta_raw, -torch.exp(self.A_log), B, C, self.D if self.D.numel() == self.nheads else self.D.view(self.nheads, self.headdim),
            delta_bias=self.dt_bias, delta_softplus=True, delta_limit=self.dt_limit, state=initial, reset_to=self.init_states,
            timeline=timeline, chunk_size=self.chunk_size, return_state=True,
        )  # type: ignore[return-value]  # fmt: skip

    def finish(self, y: Tensor, z: Tensor, mlp: Tensor) -> Tensor:
        """Gate, norm, and back to the width."""
        y = y.flatten(-2)
        y = y * F.silu(z) if self.norm is None else self.norm(y, z)
        return self.out_proj(torch.cat([mlp, y], dim=-1) if self.d_mlp else y)

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> Mamba2State:
        """Zeros, and the learned initial states where they are learned."""
        like: dict[str, Any] = {"device": self.A_log.device if device is None else device, "dtype": state_dtype(self.A_log)}
        shape = (batch_size, self.nheads, self.headdim, self.d_state)
        ssm = torch.zeros(shape, **like) if self.init_states is None else self.init_states.to(**like).expand(shape).clone()
        return Mamba2State(torch.zeros(batch_size, self.d_conv - 1, self.conv1d.weight.shape[0], **like), ssm)
