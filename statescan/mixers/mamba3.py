"""Mamba-3: a trapezoidal step, a complex state written as rotations, and optionally several inputs and outputs a head.

Paper: "Mamba-3: Improved Sequence Modeling using State Space Principles", 2026, https://openreview.net/forum?id=HwCvaJOiCj. Parameter names
are those of the authors' code; the order of in_proj's rows too. Where the two differ, the code decided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.layers import GatedRMSNorm, RMSNorm, init_delta_bias
from statescan.layers.linear import Linear
from statescan.mixers.gla import zeros_for
from statescan.ops import mamba3
from statescan.ops.checks import check_positive, state_dtype
from statescan.ops.positions import elapsed
from statescan.protocols import Bus, CausalMixer
from statescan.registry import register
from statescan.state import state as declare_state
from statescan.timeline import Timeline, hide

SLOWEST = 1e-4
"""The least rate of decay."""


@declare_state
class Mamba3State(NamedTuple):
    """Float32."""

    angle: Tensor
    """(B, H, T): the phase of each rotated pair, within one turn."""
    ssm: Tensor
    """(B, H, P, N)"""
    k: Tensor
    """(B, R, H, N): the last existing keys, rotated."""
    v: Tensor
    """(B, H, P): the last existing values."""


@register
class Mamba3(CausalMixer):
    """The mixer of Mamba-3, per head of P channels and N states, with R keys and queries::

        [z, v, B, C, dt, a, l, theta] = in_proj(u)
        delta  = softplus(dt + dt_bias),   alpha = exp(-max(f(a), 1e-4) delta),   lambda = sigmoid(l)
        Theta_t = Theta_{t-1} + pi tanh(theta_t) delta_t                           T angles, each for a pair of states
        k_r, q_r = rotate(norm(B_r) + B_bias_r, Theta), rotate(norm(C_r) + C_bias_r, Theta)
        S_t = alpha S_{t-1} + (1 - lambda) delta alpha sum_r v_{r,t-1} k_{r,t-1}^T + lambda delta sum_r v_{r,t} k_{r,t}^T     (P, N)
        y   = out_proj(sum_r o_r * (S_t q_r + D v_r) * silu(z * z_r)),   v_r = v * x_r

    o, x and z_r (mimo_o, mimo_x, mimo_z) are (H, R, P); without ``mimo`` R is 1 and they are ones. lambda = 1/2 is the trapezoidal rule,
    lambda = 1 Euler's. There is no convolution.

    Args:
        d_model: width D.
        d_state: states a channel, N, an even number.
        expand: inner width E = expand * d_model.
        headdim: channels a head, P.
        ngroups: groups of heads that share B and C, G.
        rope_fraction: part of the states that turn: T = floor(rope_fraction N) / 2.
        mimo_rank: R, with weights; None is R = 1 without.
        rate: f. "heavy_tail" is 1 + a above 0 and 1 / (1 - a) below it; "softplus" is what the authors' code had before June 2026.
        layout: which states make a pair: "pairs" (2i, 2i + 1), "halves" (i, i + N/2). None is "pairs" without ``mimo_rank`` and "halves"
            with it, as in the authors' kernels.
        outproj_norm: RMSNorm of each head's y before its gate.
        dt_min, dt_max, dt_init_floor: initial steps are log-uniform between the two, and at least the last.
        norm_eps: of every norm.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`Mamba3State`. An interval multiplies delta.
    """

    has_time = True
    dynamics = ("dt_bias", "D")
    residual_outputs = ("out_proj",)
    examples = (
        {"d_state": 10, "headdim": 16, "ngroups": 2},
        {"d_state": 8, "headdim": 8, "mimo_rank": 3, "rope_fraction": 1.0, "outproj_norm": True, "rate": "softplus"},
    )

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        expand: float = 2,
        headdim: int = 64,
        ngroups: int = 1,
        rope_fraction: float = 0.5,
        mimo_rank: int | None = None,
        rate: Literal["heavy_tail", "softplus"] = "heavy_tail",
        layout: Literal["pairs", "halves"] | None = None,
        outproj_norm: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        rank = 1 if mimo_rank is None else mimo_rank
        check_positive(d_model=d_model, d_state=d_state, expand=expand, headdim=headdim, ngroups=ngroups, mimo_rank=rank)
        d_inner = int(expand * d_model)
        if d_inner % headdim or (d_inner // headdim) % ngroups:
            raise ValueError(f"headdim must divide expand * d_model = {d_inner}, and ngroups the heads; got {headdim} and {ngroups}")
        if not 0 < rope_fraction <= 1:
            raise ValueError(f"rope_fraction must lie in (0, 1]; got {rope_fraction}")
        self.d_inner, self.d_state, self.headdim, self.nheads = d_inner, d_state, headdim, d_inner // headdim
        self.ngroups, self.rank = ngroups, rank
        self.angles = int(d_state * rope_fraction) // 2
        self.rate, self.layout = rate, layout or ("pairs" if mimo_rank is None else "halves")
        if d_state % 2:
            raise ValueError(f"Mamba3 turns states in pairs and needs an even d_state; got {d_state}")
        self.sizes = [d_inner, d_inner, *[d_state * ngroups * rank] * 2, *[self.nheads] * 3, self.angles]
        self.in_proj = Linear(d_model, sum(self.sizes), bias=False)
        self.dt_bias = nn.Parameter(init_delta_bias((self.nheads,), dt_min, dt_max, dt_init_floor))
        self.B_bias, self.C_bias = (nn.Parameter(torch.ones(self.nheads, rank, d_state)) for _ in range(2))
        self.B_norm, self.C_norm = RMSNorm(d_state, norm_eps), RMSNorm(d_state, norm_eps)
        self.D = nn.Parameter(torch.ones(self.nheads))
        several = (self.nheads, rank, headdim)
        self.mimo_x = None if mimo_rank is None else nn.Parameter(torch.full(several, 1 / rank))
        self.mimo_z = None if mimo_rank is None else nn.Parameter(torch.ones(several))
        self.mimo_o = None if mimo_rank is None else nn.Parameter(torch.full(several, 1 / rank))
        self.norm = GatedRMSNorm(d_inner, self.nheads, norm_eps, norm_before_gate=True) if outproj_norm else None
        self.out_proj = Linear(d_inner, d_model, bias=False)

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: Mamba3State | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        u = hide(x, timeline)
        batch, length = u.shape[:2]
        line = Timeline() if timeline is None else timeline.expand(batch, length)
        heads, dtype = (self.nheads, self.headdim), state_dtype(u)
        z, v, B, C, dt, a, mix, theta = self.in_proj(u).split(self.sizes, dim=-1)
        delta = elapsed(dt, self.dt_bias, True, None, line.interval, line.mask, dtype)
        several = (self.rank, self.ngroups, self.d_state)
        gate = {"z": z.unflatten(-1, heads), "z_weight": self.mimo_z, "y_weight": self.mimo_o} if self.norm is None else {}
        y, last = mamba3(
            self.C_norm(C.unflatten(-1, several)), self.B_norm(B.unflatten(-1, several)), v.unflatten(-1, heads),
            -self._rate(a.to(dtype)).clamp(min=SLOWEST) * delta, delta, mix.to(dtype).sigmoid(), math.pi * torch.tanh(theta.to(dtype)),
            self.C_bias, self.B_bias, self.D, v_weight=self.mimo_x, **gate, layout=self.layout,
            state=state, timeline=line._replace(interval=None), return_state=True,
        )  # fmt: skip
        if self.norm is not None:
            y = self._normed(y, z.unflatten(-1, heads).unsqueeze(2))
        y = hide(self.out_proj(y.flatten(-2)), timeline)
        return (y, Mamba3State(*last)) if return_state else y

    def _rate(self, a: Tensor) -> Tensor:
        if self.rate == "softplus":
            return F.softplus(a)
        return torch.where(a >= 0, 1 + a.clamp(min=0), 1 / (1 - a.clamp(max=0)))

    def _normed(self, y: Tensor, z: Tensor) -> Tensor:
        """The outputs (B, L, R, H, P), each normed, gated, and added up."""
        z = z if self.mimo_z is None else z * self.mimo_z.transpose(0, 1)
        y = self.norm(y.flatten(-2), z.flatten(-2).to(y.dtype)).view(y.shape)  # type: ignore[misc]
        return (y if self.mimo_o is None else y * self.mimo_o.transpose(0, 1)).sum(2)

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> Mamba3State:
        """Zeros."""
        heads, n, p = self.nheads, self.d_state, self.headdim
        shapes = ((heads, self.angles), (heads, p, n), (self.rank, heads, n), (heads, p))
        return Mamba3State(*(zeros_for(self.dt_bias, device, batch_size, *shape) for shape in shapes))
