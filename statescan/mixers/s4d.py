"""S4D: every channel passes through its own diagonal linear time-invariant system, run as a convolution, a scan or a recurrence.

Papers: Gu et al., "On the Parameterization and Initialization of Diagonal State Space Models", 2022, https://arxiv.org/abs/2206.11893;
Gupta et al., "Diagonal State Spaces are as Effective as Structured State Spaces", 2022, https://arxiv.org/abs/2203.14343.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from statescan import dynamics as dyn
from statescan.ops import diagonal_scan, dispatch
from statescan.ops.checks import check_shape, state_dtype
from statescan.ops.fft_conv import fft_conv
from statescan.ops.vandermonde import vandermonde
from statescan.ops.vandermonde_t import vandermonde_t
from statescan.protocols import Bus, CausalMixer
from statescan.registry import register
from statescan.state import state as declare_state
from statescan.timeline import Timeline, hide

Activation = Literal["gelu", "silu", "relu", "none"]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "silu": F.silu, "relu": F.relu, "none": lambda y: y}

SCAN_CHUNK = 64
"""Positions whose states exist at once in scan mode: memory is (B, SCAN_CHUNK, D, N/2), whatever the length."""


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


@register
class S4D(CausalMixer):
    """One diagonal system per channel, then a position-wise mixing of the channels::

        A       = -f(A_real_raw) + i g(A_imag),   delta = dt_transform(delta_raw)
        h_t     = Abar h_{t-1} + Bbar u_t         (Abar, Bbar from A, B and delta: zoh, bilinear or dss)
        y_t     = 2 Re(C h_t) + D u_t             = (K * u)_t + D u_t with K_l = 2 Re sum_n C_n Bbar_n Abar_n^l
        out     = glu(out_proj(dropout(gelu(y))))

    Without resets, mask or uneven intervals it runs as a convolution, to which the incoming state adds its echo and from which the last
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
        B_init: see :func:`statescan.dynamics.input_init`; None takes what belongs to ``init`` (``legs`` for legs, else constant).
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
    causal_tolerance = 1e-5
    dynamics = ("delta_raw", "A_real_raw", "A_imag_raw", "B", "D")
    residual_outputs = ("out_proj",)
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
        final_act: Literal["glu", "none"] = "glu",
        dropout: float = 0.0,
        tie_dropout: bool = True,
        mode: Literal["auto", "conv", "scan"] = "auto",
    ) -> None:
        super().__init__()
        n_ssm = d_model if n_ssm is None else n_ssm
        if d_model < 1 or d_state < 2 or d_state % 2:
            raise ValueError(f"d_model must be positive and d_state even, for modes are conjugate pairs; got {d_model} and {d_state}")
        if n_ssm < 1 or d_model % n_ssm:
            raise ValueError(f"n_ssm must divide d_model; got {n_ssm} and {d_model}")
        if (disc == "dss") != (l_max is not None) or (l_max is not None and l_max < 1):
            raise ValueError(f"disc='dss' needs l_max, the positive length it normalises over, and nothing else takes one; got {l_max}")
        self.d_model, self.d_state, self.n_ssm = d_model, d_state, n_ssm
        self.disc, self.l_max, self.bandlimit, self.mode = disc, l_max, bandlimit, mode
        self.dt_transform: dyn.Transform = dt_transform
        self.real_transform: dyn.Transform = real_transform
        self.imag_transform: dyn.Transform = imag_transform
        self.activation, self.final_act, self.dropout, self.tie_dropout = activation, final_act, dropout, tie_dropout
        self.holds_input = disc in ("zoh", "dss") and bandlimit is None

        A = dyn.diagonal_init(init, d_state, n_ssm, real_random=real_random)
        B = dyn.input_init(B_init or ("legs" if init == "legs" else "constant"), d_state, n_ssm)
        delta = dyn.log_uniform((d_model, 1 if dt_tied else d_state // 2), dt_min, dt_max)
        self.delta_raw = nn.Parameter(_placed(dyn.invert_transform(delta, dt_transform)))
        self.A_real_raw = nn.Parameter(_placed(dyn.invert_transform(-A.real, real_transform)))
        self.A_imag_raw = nn.Parameter(_placed(dyn.invert_transform(A.imag, imag_transform)))
        if learn_B:
            self.B = nn.Parameter(_placed(torch.view_as_real(B)))
        else:
            self.register_buffer("B", _placed(torch.view_as_real(B)))
        self.C = nn.Parameter(_placed(torch.view_as_real(dyn.complex_normal(d_model, d_state // 2))))
        self.D = nn.Parameter(torch.randn(d_model))
        self.out_proj = nn.Linear(d_model, (2 if final_act == "glu" else 1) * d_model)

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: S4DState | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        check_shape("x", x, ("B", "L", self.d_model))
        line = Timeline() if timeline is None else timeline.expand(x.shape[0], x.shape[1])
        u = hide(x, line).to(state_dtype(x))
        h = None if state is None else self._modes(state, x)
        y, last = self._convolve(u, line, h, return_state) if self._convolves(line) else self._scan(u, line, h)
        y = hide(self.finish((y + self.D.to(u.dtype) * u).to(x.dtype)), line)
        return (y, S4DState(torch.view_as_real(last))) if return_state else y

    def step(self, x: Tensor, state: S4DState, timeline: Timeline | None = None, bus: Bus | None = None) -> tuple[Tensor, S4DState]:
        """x (B, D); the recurrence once."""
        check_shape("x", x, ("B", self.d_model))
        line = Timeline() if timeline is None else timeline
        u = x if line.mask is None else torch.where(line.mask.unsqueeze(-1), x, 0)
        u = u.to(state_dtype(x))
        before = self._modes(state, x)
        interval = line.interval
        if isinstance(interval, Tensor):
            interval = interval if line.mask is None else torch.where(line.mask, interval, 1)
            interval = interval.view(-1, 1, 1)
        system = self.system(interval)
        decay, inputs = system.log_decay.exp().to(before.dtype), system.input.to(before.dtype)
        start = before if line.reset is None else torch.where(line.reset.view(-1, 1, 1), 0, before)
        after = decay * start + inputs * u.unsqueeze(-1)
        y = self.finish((_read(after, system.readout) + self.D.to(u.dtype) * u).to(x.dtype))
        if line.mask is not None:
            y = torch.where(line.mask.unsqueeze(-1), y, 0)
            after = torch.where(line.mask.view(-1, 1, 1), after, start)
        return y, S4DState(torch.view_as_real(after))

    def finish(self, y: Tensor) -> Tensor:
        """Activation, dropout, mixing of the channels, gate: (..., D) -> (..., D)."""
        y = _ACTIVATIONS[self.activation](y)
        if self.training and self.dropout:
            tied = self.tie_dropout and y.ndim == 3
            y = y * F.dropout(torch.ones_like(y[:, :1] if tied else y), self.dropout)
        y = self.out_proj(y)
        return F.glu(y, dim=-1) if self.final_act == "glu" else y

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

    def system(self, interval: Tensor | float | None = None) -> System:
        """The discretised systems; an ``interval`` tensor broadcasts to (..., D, N/2)."""
        A, B, delta = self.continuous()
        if self.l_max is not None:
            # zoh with a particular B: the normaliser belongs to the layer, so an interval stretches time as it does for zoh
            B = B / torch.expm1(delta * A * self.l_max)
        if isinstance(interval, Tensor):
            delta = delta * interval.to(delta.dtype)
        elif interval is not None:
            if not (math.isfinite(interval) and interval >= 0):
                raise ValueError(f"timeline.interval must be finite and not negative; got {interval}")
            delta = delta * interval
        log_decay, inputs = dyn.discretize_diagonal(A, B, delta, "bilinear" if self.disc == "bilinear" else "zoh")
        readout = 2 * torch.view_as_complex(self.C.to(delta.dtype).contiguous())
        if self.bandlimit is not None:
            readout = torch.where(delta * A.imag.abs() < self.bandlimit * math.pi, readout, 0)
        return System(log_decay, inputs, readout)

    def kernel(self, length: int, interval: float | None = None) -> Tensor:
        """K (D, length), float64."""
        system = self.system(interval)
        return vandermonde(system.readout * system.input, system.log_decay, length)

    # -- the two ways through a sequence ------------------------------------------------------------------------------------

    def _convolves(self, line: Timeline) -> bool:
        uneven = line.reset is not None or line.mask is not None or isinstance(line.interval, Tensor)
        if uneven and self.mode == "conv":
            raise ValueError("mode='conv' serves neither resets, masks nor a tensor of intervals: build the S4D with mode='auto' or 'scan'")
        return not uneven and self.mode != "scan"

    def _convolve(self, u: Tensor, line: Timeline, h: Tensor | None, return_state: bool) -> tuple[Tensor, Any]:
        """(B, L, D) and the state (B, D, N/2) or None -> the same after the sequence."""
        assert not isinstance(line.interval, Tensor)
        length = u.shape[1]
        z, inputs, readout = self.system(line.interval)
        dtype = _complex(u.dtype)
        y = fft_conv(u, vandermonde((readout * inputs).to(dtype), z, length))
        last = None
        if return_state:
            last = inputs.to(dtype) * vandermonde_t(u, z)
        if h is not None:
            y = y + vandermonde((readout * z.exp()).to(dtype) * h, z, length).mT
            last = last if last is None else last + (z * length).exp().to(dtype) * h
        return y, last

    def _scan(self, u: Tensor, line: Timeline, h: Tensor | None) -> tuple[Tensor, Tensor]:
        """The same through every state, a chunk at a time; a compiler, which must serve every length, sees one chunk."""
        batch, length, _ = u.shape
        zeros = torch.zeros(batch, self.d_model, self.d_state // 2, dtype=_complex(u.dtype), device=u.device)
        last = zeros if h is None else h
        if isinstance(line.interval, Tensor) and line.mask is not None:
            line = line._replace(interval=torch.where(line.mask, line.interval, 1))
        if torch.compiler.is_compiling():
            return self._chunk(u, last, *line)
        forced = dispatch.forced()  # the backward pass recomputes under the implementations of this one
        outputs = []
        for start in range(0, length, SCAN_CHUNK):
            part = u[:, start : start + SCAN_CHUNK]
            line_part = line.slice(start, start + SCAN_CHUNK)
            if torch.is_grad_enabled() and length > SCAN_CHUNK:
                y, last = checkpoint(
                    self._chunk, part, last, *line_part, use_reentrant=False, preserve_rng_state=False,
                    context_fn=lambda: (nullcontext(), dispatch.implementation(**forced)),
                )  # type: ignore[misc]  # fmt: skip
            else:
                y, last = self._chunk(part, last, *line_part)
            outputs.append(y)
        return torch.cat(outputs, dim=1), last

    def _chunk(
        self, u: Tensor, h: Tensor, reset: Tensor | None, mask: Tensor | None, interval: Tensor | float | None
    ) -> tuple[Tensor, Tensor]:
        system = self.system(interval[:, :, None, None] if isinstance(interval, Tensor) else interval)
        inputs = system.input.to(h.dtype) * u.unsqueeze(-1)
        decay = system.log_decay.exp().to(h.dtype)
        decay = decay if decay.ndim == 4 else decay[None, None]
        states, last = diagonal_scan(decay, inputs, state=h, timeline=Timeline(reset, mask), return_state=True)
        return _read(states, system.readout), last

    def _modes(self, state: S4DState, x: Tensor) -> Tensor:
        """A state as complex numbers, (B, D, N/2)."""
        if not isinstance(state, S4DState):
            raise ValueError(f"expected an S4DState; got a {type(state).__name__}: is it the state of another layer?")
        check_shape("state.ssm", state.ssm, (x.shape[0], self.d_model, self.d_state // 2, 2))
        return torch.view_as_complex(state.ssm.to(state_dtype(x)).contiguous())


def _read(h: Tensor, readout: Tensor) -> Tensor:
    """Re sum_n readout_n h_n, in h's precision, without complex products."""
    weights = torch.view_as_real(readout.conj().resolve_conj()).to(h.real.dtype)
    return (torch.view_as_real(h) * weights).sum((-2, -1))


def _complex(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype == torch.float64 else torch.complex64


def _placed(value: Tensor) -> Tensor:
    """An initial value, made on the CPU in float64, where and as parameters live."""
    return value.to(device=torch.get_default_device(), dtype=torch.float32).contiguous()
