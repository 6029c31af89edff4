"""S4D: every channel passes through its own diagonal linear time-invariant system, run as a convolution, a scan or a recurrence.

Papers: Gu et al., "On the Parameterization and Initialization of Diagonal State Space Models", 2022, https://arxiv.org/abs/2206.11893;
Gupta et al., "Diagonal State Spaces are as Effective as Structured State Spaces", 2022, https://arxiv.org/abs/2203.14343.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from statescan import dynamics as dyn
from statescan.mixers.lti import Activation, FinalAct, LTIMixer, Mode, complex_of, placed, read_modes
from statescan.ops import diagonal_scan
from statescan.ops.checks import check_shape, state_dtype
from statescan.ops.fft_conv import fft_conv
from statescan.ops.vandermonde import vandermonde
from statescan.ops.vandermonde_t import vandermonde_t
from statescan.protocols import State
from statescan.registry import register
from statescan.state import state as declare_state
from statescan.timeline import Timeline


@declare_state
class S4DState(NamedTuple):
    """Float32."""

    ssm: Tensor
    """(B, D, N/2, 2): real and imaginary parts of one of each pair of conjugate modes."""


class System(NamedTuple):
    """A discretised system, complex128, (..., D, N/2): h_t = exp(log_decay) h_{t-1} + input u_t, y_t = Re sum readout h_t."""

    log_decay: Tensor
    input: Tensor
    readout: Tensor


class ModalMixer(LTIMixer):
    """A layer of systems whose state is N/2 complex modes, one of each conjugate pair."""

    d_state: int

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> S4DState:
        """Zeros."""
        device = self.D.device if device is None else device
        return S4DState(torch.zeros(batch_size, self.d_model, self.d_state // 2, 2, dtype=state_dtype(self.D), device=device))

    def pack(self, h: Tensor) -> S4DState:
        return S4DState(torch.view_as_real(h))

    def unpack(self, state: State, x: Tensor) -> Tensor:
        """A state as complex numbers, (B, D, N/2)."""
        if not isinstance(state, S4DState):
            raise ValueError(f"expected an S4DState; got a {type(state).__name__}: is it the state of another layer?")
        check_shape("state.ssm", state.ssm, (x.shape[0], self.d_model, self.d_state // 2, 2))
        return torch.view_as_complex(state.ssm.to(state_dtype(x)).contiguous())


@register
class S4D(ModalMixer):
    """One diagonal system per channel, then a position-wise mixing of the channels::

        A       = -f(A_real_raw) + i g(A_imag),   delta = dt_transform(delta_raw)
        h_t     = Abar h_{t-1} + Bbar u_t         (Abar, Bbar from A, B and delta: zoh, bilinear or dss)
        y_t     = 2 Re(C h_t) + D u_t             = (K * u)_t + D u_t with K_l = 2 Re sum_n C_n Bbar_n Abar_n^l
        out     = glu(out_proj(dropout(gelu(y))))

    Without resets or uneven intervals it runs as a convolution, to which the incoming state adds its echo and from which the last
    state is read in closed form. Otherwise it runs as a scan, in chunks that are recomputed in the backward pass. Parameters are real
    (complex ones hold real and imaginary parts on a last axis of 2); the systems are discretised in float64.

    Args:
        d_model: width D.
        d_state: size N of each real system; N/2 modes are stored, one of each conjugate pair.
        init: A: see :func:`statescan.dynamics.diagonal_init`.
        disc: discretisation. ``zoh`` holds the input over the step. ``bilinear``: the trapezoidal rule. ``dss``: zoh with each
            kernel row normalised to sum one over ``l_max`` positions of unit interval. (The published DSS normalises over the length of
            the input; that is this one with ``l_max`` equal to it, and has no recurrence otherwise.)
        l_max: the length that ``dss`` normalises over; no other discretisation has one.
        n_ssm: independent copies of (A, B), dividing D: channel d uses copy d mod n_ssm. None: one a channel.
        dt_min, dt_max: initial steps are log-uniform between them; 1/delta is the timescale in positions.
        dt_transform: how a step stays positive.
        dt_tied: one step a channel; else one a channel and mode.
        real_transform: how -Re A stays positive. ``none`` may blow up.
        imag_transform: the same for Im A, usually none.
        real_random: draw the initial real parts from U[0, 1].
        B_init: see :func:`statescan.dynamics.input_init`; None takes what belongs to ``init`` (legs and ptd have their own, else
            constant).
        learn_B: B is a parameter; else a constant, as in the minimal S4D (C absorbs it).
        bandlimit: modes with delta |Im A| / 2 pi >= bandlimit / 2 are silenced: above the Nyquist frequency at 1.
        activation: after the system.
        final_act: ``glu`` doubles out_proj and gates one half by the other; ``none`` does not.
        dropout: before out_proj.
        tie_dropout: drop a channel at all positions of a sequence together.
        mode: ``auto`` as above; ``conv`` refuses what a convolution cannot serve; ``scan`` always scans.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`S4DState`. An interval multiplies delta; a float one is the sampling-rate argument
    (``Timeline(interval=2.0)`` for data sampled half as often).
    """

    has_time = True
    dynamics = ("delta_raw", "A_real_raw", "A_imag_raw", "B", "D")
    learning_rates: Mapping[str, float] = {"delta_raw": 1e-3, "A_real_raw": 1e-3, "A_imag_raw": 1e-3, "B": 1e-3}
    examples = (
        {"d_state": 8},
        {"d_state": 6, "init": "lin", "disc": "bilinear", "n_ssm": 2, "dt_tied": False, "dt_transform": "softplus", "final_act": "none"},
    )

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        init: dyn.DiagonalInit = "legs",
        disc: Literal["zoh", "bilinear", "dss"] = "zoh",
        l_max: int | None = None,
        n_ssm: int | None = None,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_transform: Literal["exp", "softplus"] = "exp",
        dt_tied: bool = True,
        real_transform: dyn.Transform = "exp",
        imag_transform: dyn.Transform = "none",
        real_random: bool = False,
        B_init: dyn.InputInit | None = None,
        learn_B: bool = True,
        bandlimit: float | None = None,
        activation: Activation = "gelu",
        final_act: FinalAct = "glu",
        dropout: float = 0.0,
        tie_dropout: bool = True,
        mode: Mode = "auto",
    ) -> None:
        super().__init__(d_model, activation=activation, final_act=final_act, dropout=dropout, tie_dropout=tie_dropout, mode=mode)
        n_ssm = d_model if n_ssm is None else n_ssm
        if d_model < 1 or d_state < 2 or d_state % 2:
            raise ValueError(f"d_model must be positive and d_state even, for modes are conjugate pairs; got {d_model} and {d_state}")
        if n_ssm < 1 or d_model % n_ssm:
            raise ValueError(f"n_ssm must divide d_model; got {n_ssm} and {d_model}")
        if (disc == "dss") != (l_max is not None) or (l_max is not None and l_max < 1):
            raise ValueError(f"disc='dss' needs l_max, the positive length it normalises over, and nothing else takes one; got {l_max}")
        self.d_state, self.n_ssm = d_state, n_ssm
        self.disc, self.l_max, self.bandlimit = disc, l_max, bandlimit
        self.dt_transform: dyn.Transform = dt_transform
        self.real_transform: dyn.Transform = real_transform
        self.imag_transform: dyn.Transform = imag_transform
        self.holds_input = disc in ("zoh", "dss") and bandlimit is None

        A = dyn.diagonal_init(init, d_state, n_ssm, real_random=real_random)
        B = dyn.input_init(B_init or (init if init in ("legs", "ptd") else "constant"), d_state, n_ssm)
        C = dyn.complex_normal(d_model, d_state // 2)
        if init == "ptd":  # eigenvectors that are not orthogonal: random in the coordinates of LegS, then in theirs
            C = torch.randn(d_model, d_state, dtype=torch.float64, device="cpu").to(C) @ dyn.ptd(d_state).V
        delta = dyn.log_uniform((d_model, 1 if dt_tied else d_state // 2), dt_min, dt_max)
        self.delta_raw = nn.Parameter(placed(dyn.invert_transform(delta, dt_transform)))
        self.A_real_raw = nn.Parameter(placed(dyn.invert_transform(-A.real, real_transform)))
        self.A_imag_raw = nn.Parameter(placed(dyn.invert_transform(A.imag, imag_transform)))
        if learn_B:
            self.B = nn.Parameter(placed(torch.view_as_real(B)))
        else:
            self.register_buffer("B", placed(torch.view_as_real(B)))
        self.C = nn.Parameter(placed(torch.view_as_real(C)))

    # -- the systems --------------------------------------------------------------------------------------------------------

    def continuous(self) -> tuple[Tensor, Tensor, Tensor]:
        """A and B (D, N/2), complex, and delta (D, 1 or N/2), in float64 (in float32 on devices that have no other)."""
        wide = torch.float32 if self.D.device.type == "mps" else torch.float64
        repeats = (self.d_model // self.n_ssm, 1)
        real = dyn.apply_transform(self.A_real_raw.to(wide), self.real_transform)
        imag = dyn.apply_transform(self.A_imag_raw.to(wide), self.imag_transform)
        B = torch.view_as_complex(self.B.to(wide).contiguous())
        delta = dyn.apply_transform(self.delta_raw.to(wide), self.dt_transform)
        return torch.complex(-real, imag).repeat(repeats), B.repeat(repeats), delta

    def system(self, interval: Tensor | float | None = None, readout: Tensor | None = None) -> System:
        """The discretised systems; an ``interval`` tensor broadcasts to (..., D, N/2), a ``readout`` stands in for C."""
        A, B, delta = self.continuous()
        if self.l_max is not None:
            # zoh with a particular B: the normaliser belongs to the layer, so an interval stretches time as it does for zoh
            B = B / torch.expm1(delta * A * self.l_max)
        if interval is not None:
            delta = delta * (interval.to(delta.dtype) if isinstance(interval, Tensor) else interval)
        log_decay, inputs = dyn.discretize_diagonal(A, B, delta, "bilinear" if self.disc == "bilinear" else "zoh")
        readout = 2 * torch.view_as_complex((self.C if readout is None else readout).to(delta.dtype).contiguous())
        if self.bandlimit is not None:
            readout = torch.where(delta * A.imag.abs() < self.bandlimit * math.pi, readout, 0)
        return System(log_decay, inputs, readout)

    def kernel(self, length: int, interval: float | None = None, readout: Tensor | None = None) -> Tensor:
        """K (D, length), float64."""
        system = self.system(interval, readout)
        return vandermonde(system.readout * system.input, system.log_decay, length)

    # -- the ways through a sequence ----------------------------------------------------------------------------------------

    def advance(self, system: System, h: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        after = system.log_decay.exp().to(h.dtype) * h + system.input.to(h.dtype) * u.unsqueeze(-1)
        return after, read_modes(after, system.readout)

    def convolve(self, u: Tensor, interval: float | None, h: Tensor | None, return_state: bool) -> tuple[Tensor, Tensor | None]:
        length = u.shape[1]
        z, inputs, readout = self.system(interval)
        dtype = complex_of(u.dtype)
        y = fft_conv(u, vandermonde((readout * inputs).to(dtype), z, length))
        last = None
        if return_state:
            last = inputs.to(dtype) * vandermonde_t(u, z)
        if h is not None:
            y = y + vandermonde((readout * z.exp()).to(dtype) * h, z, length).mT
            last = last if last is None else last + (z * length).exp().to(dtype) * h
        return y, last

    def scan_positions(self, u: Tensor, line: Timeline, h: Tensor | None) -> tuple[Tensor, Tensor]:
        """Through every state, a chunk at a time."""
        return self.chunked(self._chunk, u, line, self.start(u) if h is None else h)

    def _chunk(
        self, u: Tensor, h: Tensor, reset: Tensor | None, mask: Tensor | None, interval: Tensor | float | None
    ) -> tuple[Tensor, Tensor]:
        system = self.system(interval[:, :, None, None] if isinstance(interval, Tensor) else interval)
        inputs = system.input.to(h.dtype) * u.unsqueeze(-1)
        decay = system.log_decay.exp().to(h.dtype)
        decay = decay if decay.ndim == 4 else decay[None, None]
        states, last = diagonal_scan(decay, inputs, state=h, timeline=Timeline(reset, mask), return_state=True)
        return read_modes(states, system.readout), last
