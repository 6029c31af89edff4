"""LSSL: linear state-space layers with full, structured state matrices, the first deep state-space model.

Paper: Gu et al., "Combining Recurrent, Convolutional, and Continuous-time Models with Linear State-Space Layers", 2021,
https://arxiv.org/abs/2110.13985.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from statescan import dynamics as dyn
from statescan.mixers.lti import Activation, FinalAct, LTIMixer, Mode, placed
from statescan.ops.checks import check_positive, check_shape, state_dtype
from statescan.ops.fft_conv import fft_conv
from statescan.ops.linear_system import linear_system
from statescan.protocols import State
from statescan.registry import register
from statescan.state import state as declare_state
from statescan.timeline import Timeline


@declare_state
class LSSLState(NamedTuple):
    """Float32."""

    ssm: Tensor
    """(B, D, N)"""


class System(NamedTuple):
    """A discretised system, float64: A (D, N, N), B (D, N) and C (M D, N)."""

    A: Tensor
    B: Tensor
    C: Tensor


@register
class LSSL(LTIMixer):
    """One full linear system per channel, started as HiPPO-LegS, then a position-wise mixing of the channels::

        x' = A x + B u,  y = C x + D u,     by the bilinear rule with step delta
        A  = -diag(p_left) (T^-1 + diag(c)) diag(p_right),   B = p_left * b,     T tridiagonal (lower, diagonal, upper)
        out = out_proj(dropout(gelu(y)))

    With M ``channels`` every system is read out M times, and out_proj mixes M D numbers.

    LegS is lower = -1, diagonal = 1, upper = 0 (T^-1 is a triangle of ones), p = sqrt(2n + 1), c = -n / (2n + 1), b = 1. The dense
    matrices are formed in every call, in float64, and inverted: N^3 operations a channel, which is what S4 avoids.

    Args:
        d_model: width D.
        d_state: N.
        learn: 0: A, B and delta are constants; 1: they are learned, A and B shared by all channels; 2: each channel has its own.
        channels: readouts M of each system.
        dt_min, dt_max: initial steps are log-uniform between them.
        activation, final_act, dropout, tie_dropout, mode: see :class:`LTIMixer`.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`LSSLState`. An interval must be one number, which multiplies delta: a change of the
    sampling rate.
    """

    examples = ({"d_state": 6, "learn": 1}, {"d_state": 3, "learn": 2, "channels": 2})

    delta_log: Tensor

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        learn: Literal[0, 1, 2] = 1,
        channels: int = 1,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        activation: Activation = "gelu",
        final_act: FinalAct = "none",
        dropout: float = 0.0,
        tie_dropout: bool = True,
        mode: Mode = "auto",
    ) -> None:
        super().__init__(
            d_model, activation=activation, final_act=final_act, dropout=dropout, tie_dropout=tie_dropout, mode=mode, channels=channels
        )
        check_positive(d_state=d_state)
        self.d_state, self.learn = d_state, learn
        n = torch.arange(d_state, dtype=torch.float64, device="cpu")
        r, one = (2 * n + 1).sqrt(), torch.ones_like(n)
        start = {
            "delta_log": dyn.log_uniform((d_model,), dt_min, dt_max).log(),
            "lower": -torch.ones(d_state + 1, dtype=torch.float64),
            "diagonal": one,
            "upper": torch.zeros(d_state + 1, dtype=torch.float64),
            "p_left": r,
            "p_right": r,
            "shift": -n / (2 * n + 1),
            "b": one,
        }
        # off-diagonals have an entry to spare at each end, as in the published code: row n of T holds lower[n] and upper[n + 1]
        for name, value in start.items():
            own = value if name == "delta_log" else value.repeat(d_model if learn == 2 else 1, 1)
            if learn:
                setattr(self, name, nn.Parameter(placed(own)))
            else:
                self.register_buffer(name, placed(own))
        self.C = nn.Parameter(placed(torch.randn(channels * d_model, d_state, dtype=torch.float64, device="cpu")))

    dynamics = ("delta_log", "lower", "diagonal", "upper", "p_left", "p_right", "shift", "b", "D")

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> LSSLState:
        """Zeros."""
        device = self.D.device if device is None else device
        return LSSLState(torch.zeros(batch_size, self.d_model, self.d_state, dtype=state_dtype(self.D), device=device))

    def continuous(self) -> tuple[Tensor, Tensor]:
        """A (D or 1, N, N) and B (D or 1, N), float64."""
        lower, diagonal, upper, left, right, shift, b = (
            getattr(self, name).double() for name in ("lower", "diagonal", "upper", "p_left", "p_right", "shift", "b")
        )
        T = torch.diag_embed(diagonal) + torch.diag_embed(lower[:, 1:-1], -1) + torch.diag_embed(upper[:, 1:-1], 1)
        A = -left.unsqueeze(-1) * (torch.linalg.inv(T) + torch.diag_embed(shift)) * right.unsqueeze(-2)
        return A, left * b

    def system(self, interval: Tensor | float | None = None, readout: Tensor | None = None) -> System:
        """The discretised systems; a ``readout`` stands in for C."""
        assert not isinstance(interval, Tensor)  # has_time is False
        A, B = self.continuous()
        delta = self.delta_log.double().exp() * (1 if interval is None else interval)
        half = delta[:, None, None] / 2 * A
        eye = torch.eye(self.d_state, dtype=A.dtype, device=A.device)
        sides = torch.cat([eye + half, delta[:, None, None] * B.expand(self.d_model, -1).unsqueeze(-1)], -1)
        solved = torch.linalg.solve(eye - half, sides)
        return System(solved[..., :-1], solved[..., -1], (self.C if readout is None else readout).double())

    def kernel(self, length: int, interval: float | None = None, readout: Tensor | None = None) -> Tensor:
        """K (M D, length), float64: the answer to an impulse."""
        system = self.system(interval, readout)
        impulse = torch.zeros(1, length, self.d_model, dtype=torch.float64, device=self.D.device)
        impulse[:, 0] = 1
        y = linear_system(impulse, system.A, system.B, self._readouts(system.C))
        assert isinstance(y, Tensor)
        return y[0].permute(2, 1, 0).flatten(0, 1)

    def _readouts(self, C: Tensor) -> Tensor:
        """(M D, N) -> (D, M, N)"""
        return C.unflatten(0, (self.channels, -1)).transpose(0, 1)

    def advance(self, system: System, h: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        A, B, C = (t.to(h.dtype) for t in system)
        after = torch.einsum("dnm,bdm->bdn", A, h) + B * u.unsqueeze(-1)
        return after, torch.einsum("dmn,bdn->bmd", self._readouts(C), after).flatten(1)

    def convolve(self, u: Tensor, interval: float | None, h: Tensor | None, return_state: bool) -> tuple[Tensor, Tensor | None]:
        if h is not None or return_state:
            return self.scan_positions(u, Timeline(interval=interval), h)
        return fft_conv(self.copied(u), self.kernel(u.shape[1], interval).to(u.dtype)), None

    def scan_positions(self, u: Tensor, line: Timeline, h: Tensor | None) -> tuple[Tensor, Tensor]:
        """In chunks."""
        assert not isinstance(line.interval, Tensor)
        A, B, C = (t.to(u.dtype) for t in self.system(line.interval))
        y, last = linear_system(u, A, B, self._readouts(C), state=h, timeline=Timeline(line.reset, line.mask), return_state=True)
        return y.mT.flatten(2), last

    def pack(self, h: Tensor) -> LSSLState:
        return LSSLState(h)

    def unpack(self, state: State, x: Tensor) -> Tensor:
        if not isinstance(state, LSSLState):
            raise ValueError(f"expected an LSSLState; got a {type(state).__name__}: is it the state of another layer?")
        check_shape("state.ssm", state.ssm, (x.shape[0], self.d_model, self.d_state))
        return state.ssm.to(state_dtype(x))
