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
from statescan.mixers.gla import zeros_for
from statescan.ops import causal_conv1d, diagonal_scan, linear_attention
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
        self.in_proj = nn.Linear(d_model, sum(self.sizes), bias=False)
        self.dt_bias = nn.Parameter(init_delta_bias((self.nheads,), dt_min, dt_max, dt_init_floor))
        self.B_bias, self.C_bias = (nn.Parameter(torch.ones(self.nheads, rank, d_state)) for _ in range(2))
        self.B_norm, self.C_norm = RMSNorm(d_state, norm_eps), RMSNorm(d_state, norm_eps)
        self.D = nn.Parameter(torch.ones(self.nheads))
        several = (self.nheads, rank, headdim)
        self.mimo_x = None if mimo_rank is None else nn.Parameter(torch.full(several, 1 / rank))
        self.mimo_z = None if mimo_rank is None else nn.Parameter(torch.ones(several))
        self.mimo_o = None if mimo_rank is None else nn.Parameter(torch.full(several, 1 / rank))
        self.norm = GatedRMSNorm(d_inner, self.nheads, norm_eps, norm_before_gate=True) if outproj_norm else None
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)

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
        order, heads, dtype = line._replace(interval=None), (self.nheads, self.headdim), state_dtype(u)
        z, v, B, C, dt, a, mix, theta = self.in_proj(u).split(self.sizes, dim=-1)
        delta = elapsed(dt, self.dt_bias, True, None, line.interval, line.mask, dtype)
        log_decay = -self._rate(a.to(dtype)).clamp(min=SLOWEST) * delta
        angle, last_angle = self._phases(math.pi * torch.tanh(theta.to(dtype)), delta, order, state)
        still = self.d_state // 2 - self.angles
        turn = torch.complex(F.pad(angle.cos(), (0, still), value=1.0), F.pad(angle.sin(), (0, still))).unsqueeze(2)
        k, q = self._turned(B, self.B_norm, self.B_bias, turn), self._turned(C, self.C_norm, self.C_bias, turn)
        v = v.unflatten(-1, heads).to(dtype)
        now = mix.to(dtype).sigmoid() * delta
        (k_before, k_last), (v_before, v_last), (now_before, now_last) = (
            _shifted(t, order, previous)
            for t, previous in ((k, None if state is None else self._pairs(state.k)), (v, None if state is None else state.v), (now, None))
        )
        # What the position before adds as this one comes: its weight of then, which the incoming state has, and that of now.
        added = (now_before + delta - now) * log_decay.exp()
        before, inputs = self._several(v_before * added.unsqueeze(-1), self.mimo_x), self._several(v, self.mimo_x)
        y, ssm = self._recur(q, k_before, before, log_decay, order, None if state is None else self._pairs(state.ssm))
        y = y + self._present(q, k, now, inputs)
        y = self._gated(y, self._several(z.unflatten(-1, heads), self.mimo_z))
        y = hide(self.out_proj(y.flatten(-2).to(u.dtype)), timeline)
        if not return_state:
            return y
        writes = self._several((v_last * now_last.unsqueeze(-1)).unsqueeze(1), self.mimo_x)[:, 0]
        ssm = ssm + torch.einsum("brhp,brhn->bhpn", writes, k_last)
        return y, Mamba3State(last_angle, self._stored(ssm), self._stored(k_last), v_last)

    def _rate(self, a: Tensor) -> Tensor:
        if self.rate == "softplus":
            return F.softplus(a)
        return torch.where(a >= 0, 1 + a.clamp(min=0), 1 / (1 - a.clamp(max=0)))

    def _phases(self, speed: Tensor, delta: Tensor, order: Timeline, state: Mamba3State | None) -> tuple[Tensor, Tensor]:
        """Speeds (B, L, T) and steps (B, L, H) -> the phases (B, L, H, T) within one turn, and the last ones.

        They are summed in float64: after thousands of turns float32 has lost the angle.
        """
        wide = torch.float32 if speed.device.type == "mps" else torch.float64
        turns = (speed.unsqueeze(2) * delta.unsqueeze(-1)).to(wide)
        summed, last = diagonal_scan(
            turns.new_ones(1, 1, 1, 1), turns, state=None if state is None else state.angle.to(wide), timeline=order, return_state=True
        )
        angle, last = (torch.remainder(t, 2 * math.pi).to(speed.dtype) for t in (summed, last))
        return angle, last

    def _turned(self, raw: Tensor, norm: RMSNorm, bias: Tensor, turn: Tensor) -> Tensor:
        """B or C as projected, (B, L, R G N) -> (B, L, R, H, N), normed, biased and rotated; states in pairs."""
        raw = norm(raw.unflatten(-1, (self.rank, self.ngroups, 1, self.d_state))).to(turn.real.dtype)
        x = self._pairs(raw) + self._pairs(bias.transpose(0, 1).unflatten(1, (self.ngroups, -1)))
        return torch.view_as_real(torch.view_as_complex(x.flatten(3, 4).unflatten(-1, (-1, 2))) * turn).flatten(-2)

    def _pairs(self, x: Tensor) -> Tensor:
        """States (..., N) in the order of the parameters and of the state -> each pair's two side by side."""
        return x if self.layout == "pairs" else x.unflatten(-1, (2, -1)).mT.flatten(-2)

    def _stored(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`_pairs`."""
        return x if self.layout == "pairs" else x.unflatten(-1, (-1, 2)).mT.flatten(-2)

    def _several(self, x: Tensor, weight: Tensor | None) -> Tensor:
        """(B, L, H, P) -> (B, L, R, H, P)."""
        return x.unsqueeze(2) if weight is None else x.unsqueeze(2) * weight.transpose(0, 1)

    def _recur(
        self, q: Tensor, keys: Tensor, values: Tensor, log_decay: Tensor, order: Timeline, ssm: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Linear attention over R writes a position: y (B, L, R, H, P) and the last state (B, H, P, N).

        Query r stands at write r of its position, and what it has not met of that position is added.
        """
        rank = self.rank
        line = Timeline(
            reset=None if order.reset is None else F.pad(order.reset.unsqueeze(2), (0, rank - 1)).flatten(1, 2),
            mask=None if order.mask is None else order.mask.repeat_interleave(rank, dim=1),
        )
        y, last = linear_attention(
            q.flatten(1, 2), keys.flatten(1, 2), values.flatten(1, 2), F.pad(log_decay.unsqueeze(2), (0, 0, 0, rank - 1)).flatten(1, 2),
            scale=1.0, state=None if ssm is None else ssm.mT, timeline=line, return_state=True,
        )  # fmt: skip
        y = y.unflatten(1, (-1, rank))
        if rank > 1:
            missed = torch.einsum("blrhn,blshn->blhrs", q, keys).triu(1)
            y = y + torch.einsum("blhrs,blshp->blrhp", missed, values)
        return y, last.mT

    def _present(self, q: Tensor, k: Tensor, now: Tensor, inputs: Tensor) -> Tensor:
        """What a position's own writes give to its queries, and the skip: (B, L, R, H, P)."""
        if self.rank == 1:
            return ((q * k).sum(-1, keepdim=True) * now[:, :, None, :, None] + self.D[:, None]) * inputs
        own = torch.einsum("blrhn,blshn->blhrs", q, k) * now[..., None, None]
        return torch.einsum("blhrs,blshp->blrhp", own, inputs) + self.D[:, None] * inputs

    def _gated(self, y: Tensor, z: Tensor) -> Tensor:
        """(B, L, R, H, P) each -> (B, L, H, P)."""
        y = self.norm(y.flatten(-2), z.flatten(-2)).view(y.shape) if self.norm is not None else y * F.silu(z)
        return y.squeeze(2) if self.mimo_o is None else (y * self.mimo_o.transpose(0, 1)).sum(2)

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


def _shifted(x: Tensor, order: Timeline, previous: Tensor | None) -> tuple[Tensor, Tensor]:
    """(B, L, ...) of the existing position before each, and of the last one of all, (B, ...); zeros where there is none."""
    flat = x.flatten(2)
    back = flat.new_tensor([1.0, 0.0]).expand(flat.shape[-1], 2)
    tail = None if previous is None else previous.flatten(1).unsqueeze(1)
    shifted, tail = causal_conv1d(flat, back, state=tail, timeline=order, return_state=True)
    return shifted.unflatten(2, x.shape[2:]), tail.squeeze(1).unflatten(1, x.shape[2:])
