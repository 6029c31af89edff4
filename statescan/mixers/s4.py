"""S4: every channel passes through its own diagonal-plus-low-rank system, which starts as a HiPPO memory.

Papers: Gu et al., "Efficiently Modeling Long Sequences with Structured State Spaces", 2022, https://arxiv.org/abs/2111.00396;
Gu et al., "How to Train Your HiPPO", 2022, https://arxiv.org/abs/2206.12037; the tied (Hurwitz) form: Goel et al., "It's Raw! Audio
Generation with State-Space Models", 2022, https://arxiv.org/abs/2202.09729.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from statescan import dynamics as dyn
from statescan.mixers.lti import Activation, FinalAct, Mode, placed
from statescan.mixers.s4d import ModalMixer
from statescan.ops.dplr_kernel import dplr_kernel
from statescan.ops.dplr_kernel.portable import interleave, transition
from statescan.ops.fft_conv import fft_conv
from statescan.ops.linear_system import linear_system
from statescan.registry import register
from statescan.timeline import Timeline

S4Init = Literal["legs", "legt", "lagt", "fourier", "fourier2", "fourier_decay", "fourier_diag", "hippo"]
_MIXTURES: dict[str, tuple[dyn.Measure, ...]] = {"hippo": ("legs", "fourier")}
LEAST_REAL = 1e-4
"""-Re Lambda starts no smaller: LegT, LagT and Fourier have purely imaginary eigenvalues, which the transforms do not reach."""


class LowRankSystem(NamedTuple):
    """A discretised system, complex128: x' = d * x - sum_r p_r Re(q_r . x) + b u, y = Re(c . x); (D, N/2), p and q (D, R, N/2)."""

    d: Tensor
    p: Tensor
    q: Tensor
    b: Tensor
    c: Tensor


class DenseSystem(NamedTuple):
    """The same on real and imaginary parts in turn, float64: A (D, N, N), B (D, N), C (D, N)."""

    A: Tensor
    B: Tensor
    C: Tensor


@register
class S4(ModalMixer):
    """One diagonal-plus-low-rank system per channel, then a position-wise mixing of the channels::

        A   = diag(Lambda) - sum_r P_r P_r^H,   Lambda = -f(A_real_raw) + i A_imag,   delta = dt_transform(delta_raw)
        x_t = Abar x_{t-1} + Bbar u_t           Abar = (1 - delta A / 2)^-1 (1 + delta A / 2), Bbar = (1 - delta A / 2)^-1 delta B
        y_t = 2 Re(C x_t) + D u_t               = (K * u)_t + D u_t
        out = glu(out_proj(dropout(gelu(y))))

    Because the two factors of the low-rank term are tied, A + A^H is negative: the spectrum stays on the left whatever training does. As a
    convolution the kernel comes from :func:`dplr_kernel`; where a state goes in, or the timeline has resets or a mask behind one, the
    recurrence runs in chunks (:func:`linear_system`, N^2 a position); ``step`` costs O(N).

    Args:
        d_model: width D.
        d_state: size N of each real system; N/2 modes are stored, one of each conjugate pair.
        init: the HiPPO measure of A and B (:func:`statescan.dynamics.hippo`); ``hippo`` gives half of the copies legs and half fourier.
        rank: R; None is the largest rank of the measures (2 for legt, 1 for most). More adds rows of zeros.
        disc: ``bilinear``; ``zoh`` holds the input over the step, through dense matrix exponentials (slow).
        l_max: None: C itself is a parameter, and a kernel may have any length. A number: the parameter is C (1 - Abar^l_max), as in the
            published code, and C is solved for in every call (checkpoints of that code need it; nothing is ever written back).
        n_ssm: independent copies of (A, B), dividing D: channel d uses copy d mod n_ssm. None: one a channel.
        dt_min, dt_max: initial steps are log-uniform between them; 1/delta is the timescale in positions.
        dt_transform: how a step stays positive.
        real_transform: how -Re Lambda stays positive.
        activation, final_act, dropout, tie_dropout, mode: see :class:`LTIMixer`.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`S4DState`. An interval must be one number, which multiplies delta. For both directions:
    ``TwoSided(d_model, Spec("S4", ...))``.
    """

    dynamics = ("delta_raw", "A_real_raw", "A_imag", "B", "P", "D")
    learning_rates: Mapping[str, float] = {"delta_raw": 1e-3, "A_real_raw": 1e-3, "A_imag": 1e-3, "B": 1e-3, "P": 1e-3}
    examples = ({"d_state": 8, "n_ssm": 2, "init": "hippo"},)

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        init: S4Init = "legs",
        rank: int | None = None,
        disc: Literal["bilinear", "zoh"] = "bilinear",
        l_max: int | None = None,
        n_ssm: int | None = None,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_transform: Literal["exp", "softplus"] = "exp",
        real_transform: dyn.Transform = "exp",
        activation: Activation = "gelu",
        final_act: FinalAct = "glu",
        dropout: float = 0.0,
        tie_dropout: bool = True,
        mode: Mode = "auto",
    ) -> None:
        super().__init__(d_model, activation=activation, final_act=final_act, dropout=dropout, tie_dropout=tie_dropout, mode=mode)
        n_ssm = d_model if n_ssm is None else n_ssm
        if d_state < 2 or d_state % 2:
            raise ValueError(f"d_state must be even, for modes are conjugate pairs; got {d_state}")
        if n_ssm < 1 or d_model % n_ssm:
            raise ValueError(f"n_ssm must divide d_model; got {n_ssm} and {d_model}")
        if l_max is not None and l_max < 1:
            raise ValueError(f"l_max must be positive; got {l_max}")
        self.d_state, self.n_ssm, self.disc, self.l_max = d_state, n_ssm, disc, l_max
        self.dt_transform: dyn.Transform = dt_transform
        self.real_transform: dyn.Transform = real_transform
        Lambda, P, B = _initial(init, d_state, n_ssm, rank)
        delta = dyn.log_uniform((d_model,), dt_min, dt_max)
        C = dyn.complex_normal(d_model, d_state // 2)
        if l_max is not None:
            repeats = d_model // n_ssm
            start = self._discrete(Lambda.repeat(repeats, 1), P.repeat(1, repeats, 1).transpose(0, 1), B.repeat(repeats, 1), delta)
            C = _truncate(C, start, l_max)
        self.delta_raw = nn.Parameter(placed(dyn.invert_transform(delta, dt_transform)))
        self.A_real_raw = nn.Parameter(placed(dyn.invert_transform(-Lambda.real, real_transform)))
        self.A_imag = nn.Parameter(placed(Lambda.imag))
        self.B = nn.Parameter(placed(torch.view_as_real(B)))
        self.P = nn.Parameter(placed(torch.view_as_real(P)))
        self.C = nn.Parameter(placed(torch.view_as_real(C)))

    # -- the systems --------------------------------------------------------------------------------------------------------

    def continuous(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Lambda and B (D, N/2), P (D, R, N/2), complex128, and delta (D,)."""
        repeats = self.d_model // self.n_ssm
        real = dyn.apply_transform(self.A_real_raw.double(), self.real_transform)
        Lambda = torch.complex(-real, self.A_imag.double())
        B, P = (torch.view_as_complex(t.double().contiguous()) for t in (self.B, self.P))
        delta = dyn.apply_transform(self.delta_raw.double(), self.dt_transform)
        return Lambda.repeat(repeats, 1), P.repeat(1, repeats, 1).transpose(0, 1), B.repeat(repeats, 1), delta

    def system(self, interval: Tensor | float | None = None, readout: Tensor | None = None) -> LowRankSystem | DenseSystem:
        """The discretised systems: low-rank ones for bilinear, dense ones for zoh. A ``readout`` stands in for C."""
        assert not isinstance(interval, Tensor)  # has_time is False
        Lambda, P, B, delta = self.continuous()
        C = torch.view_as_complex((self.C if readout is None else readout).double().contiguous())
        if self.l_max is not None:
            C = _truncate(C, self._discrete(Lambda, P, B, delta), self.l_max, undo=True)
        discrete = self._discrete(Lambda, P, B, delta if interval is None else delta * interval)
        if isinstance(discrete, DenseSystem):
            return discrete._replace(C=interleave(2 * C.conj()))
        return discrete._replace(c=2 * C)

    def _discrete(self, Lambda: Tensor, P: Tensor, B: Tensor, delta: Tensor) -> LowRankSystem | DenseSystem:
        """Without C."""
        if self.disc == "bilinear":
            return LowRankSystem(*dyn.discretize_dplr(Lambda, P, B, delta), c=torch.zeros_like(B))
        continuous = _dense(LowRankSystem(Lambda, P, 2 * P.conj(), B, torch.zeros_like(B)))
        width, n = continuous.B.shape
        joint = continuous.A.new_zeros(width, n + 1, n + 1)
        joint[:, :n, :n], joint[:, :n, n] = delta[:, None, None] * continuous.A, delta[:, None] * continuous.B
        joint = torch.linalg.matrix_exp(joint)
        return DenseSystem(joint[:, :n, :n], joint[:, :n, n], continuous.C)

    def kernel(self, length: int, interval: float | None = None, readout: Tensor | None = None) -> Tensor:
        """K (D, length), float64."""
        system = self.system(interval, readout)
        if isinstance(system, LowRankSystem):
            return dplr_kernel(system.c, system.d, system.p, system.q, system.b, length)
        impulse = torch.zeros(1, length, self.d_model, dtype=torch.float64, device=self.D.device)
        impulse[:, 0] = 1
        y = linear_system(impulse, system.A, system.B, system.C.unsqueeze(1))
        assert isinstance(y, Tensor)
        return y[0, :, :, 0].T

    # -- the ways through a sequence ----------------------------------------------------------------------------------------

    def advance(self, system: LowRankSystem | DenseSystem, h: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(system, DenseSystem):
            x = torch.view_as_real(h).flatten(-2)
            A, B, C = (t.to(x.dtype) for t in system)
            x = torch.einsum("dnm,bdm->bdn", A, x) + B * u.unsqueeze(-1)
            return torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()), (C * x).sum(-1)
        d, p, q, b, c = (t.to(h.dtype) for t in system)
        read = (q * h.unsqueeze(2)).sum(-1, keepdim=True).real
        after = d * h - (p * read).sum(2) + b * u.unsqueeze(-1)
        return after, (c * after).sum(-1).real

    def convolve(self, u: Tensor, interval: float | None, h: Tensor | None, return_state: bool) -> tuple[Tensor, Tensor | None]:
        line = Timeline(interval=interval)
        if h is not None:
            return self.scan_positions(u, line, h)
        y = fft_conv(u, self.kernel(u.shape[1], interval).to(u.dtype))
        return y, self._recur(u, line, None, readouts=0)[1] if return_state else None

    def scan_positions(self, u: Tensor, line: Timeline, h: Tensor | None) -> tuple[Tensor, Tensor]:
        """By the dense recurrence, in chunks."""
        y, last = self._recur(u, line, h, readouts=1)
        return y.squeeze(-1), last

    def _recur(self, u: Tensor, line: Timeline, h: Tensor | None, readouts: int) -> tuple[Tensor, Tensor]:
        """y (B, L, D, readouts) and the state behind it, which alone costs a fraction of both."""
        assert not isinstance(line.interval, Tensor)
        system = self.system(line.interval)
        dense = _dense(system) if isinstance(system, LowRankSystem) else system
        A, B, C = (t.to(u.dtype) for t in dense)
        state = None if h is None else torch.view_as_real(h).flatten(-2)
        line = Timeline(line.reset, line.mask)
        y, last = linear_system(u, A, B, C.unsqueeze(1)[:, :readouts], state=state, timeline=line, return_state=True)
        return y, torch.view_as_complex(last.unflatten(-1, (-1, 2)).contiguous())


def _initial(init: S4Init, n: int, copies: int, rank: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Lambda and B (copies, N/2), P (R, copies, N/2)."""
    measures = _MIXTURES.get(init, (init,))
    if copies % len(measures):
        raise ValueError(f"init={init!r} shares the copies among {len(measures)} measures: n_ssm must be a multiple of it; got {copies}")
    forms = [dyn.nplr(measure, n) for measure in measures]  # type: ignore[arg-type]
    least = max(form.P.shape[0] for form in forms)
    if rank is not None and rank < least:
        raise ValueError(f"init={init!r} has rank {least}; got rank={rank}")
    each = copies // len(measures)
    rows = least if rank is None else rank
    P = torch.stack([torch.cat([form.P, form.P.new_zeros(rows - form.P.shape[0], n // 2)]) for form in forms], 1)
    Lambda, B = (torch.stack([getattr(form, name) for form in forms]) for name in ("Lambda", "B"))
    Lambda = torch.complex(Lambda.real.clamp(max=-LEAST_REAL), Lambda.imag)
    return Lambda.repeat_interleave(each, 0), P.repeat_interleave(each, 1), B.repeat_interleave(each, 0)


def _dense(system: LowRankSystem) -> DenseSystem:
    """On real and imaginary parts in turn: Re(q . x) is a product with conj(q)."""
    A = transition(system.d, system.p, system.q)
    return DenseSystem(A, interleave(system.b), interleave(system.c.conj()))


def _truncate(C: Tensor, system: LowRankSystem | DenseSystem, length: int, *, undo: bool = False) -> Tensor:
    """C (1 - Abar^length), or what it was made from: complex (D, N/2), by dense powers in real arithmetic."""
    A = (_dense(system) if isinstance(system, LowRankSystem) else system).A
    rest = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device) - torch.linalg.matrix_power(A, length)
    row = interleave(C.conj()).unsqueeze(1)
    row = torch.linalg.solve(rest, row, left=False) if undo else row @ rest
    return torch.view_as_complex(row.squeeze(1).unflatten(-1, (-1, 2)).contiguous()).conj().resolve_conj()
