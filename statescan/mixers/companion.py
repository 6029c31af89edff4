"""Companion systems: one discrete delay line fed back from its end a channel; open loop for encoders, closed loop for forecasts.

Paper: Zhang et al., "Effectively Modeling Time Series with Simple Discrete State Spaces", 2023, https://arxiv.org/abs/2303.09489.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.mixers.gla import zeros_for
from statescan.mixers.lti import Activation, LTIMixer, Mode
from statescan.ops.checks import check_shape, state_dtype
from statescan.ops.companion_kernel import companion_kernel
from statescan.ops.companion_kernel.reference import companion
from statescan.ops.fft_conv import fft_conv
from statescan.ops.linear_system import linear_system
from statescan.protocols import State
from statescan.registry import register
from statescan.state import state as declare_state
from statescan.timeline import Timeline

LEAST_NORM = 1e-4
"""Rows that are this small on average are not normalised."""


@declare_state
class CompanionState(NamedTuple):
    """Float32."""

    x: Tensor
    """(B, D, d)"""


class Rows(NamedTuple):
    """The system of every channel, (D, d): the last column of A, the input and the readout."""

    a: Tensor
    b: Tensor
    c: Tensor


def unit_rows(rows: Tensor) -> Tensor:
    """Each row (..., d) divided by its absolute sum, unless all are next to nothing."""
    norm = rows.abs().sum(-1, keepdim=True)
    return torch.where(norm.mean() > LEAST_NORM, rows / torch.where(norm > 0, norm, 1), rows)


class _Companion(LTIMixer):
    """The system that the layers below share; see :class:`Companion`."""

    readout_name = "c"
    dynamics: ClassVar[tuple[str, ...]] = ("a", "b", "c", "D")

    def add_systems(self, d_state: int, n_kernels: int | None) -> None:
        """Make the parameters of the systems; after ``super().__init__``."""
        n_kernels = self.d_model if n_kernels is None else n_kernels
        if d_state < 1 or n_kernels < 1 or self.d_model % n_kernels:
            raise ValueError(
                f"d_state must be positive and n_kernels divide d_model={self.d_model}; got d_state={d_state}, n_kernels={n_kernels}"
            )
        self.d_state, self.n_kernels = d_state, n_kernels
        self.a, self.b, self.c = (nn.Parameter(torch.randn(n_kernels, d_state)) for _ in range(3))

    def spread(self, rows: Tensor) -> Tensor:
        """(n_kernels, ...) -> (D, ...): every kernel serves neighbouring channels."""
        return rows.repeat_interleave(self.d_model // self.n_kernels, 0)

    def wide(self, name: str) -> Tensor:
        """A parameter in the widest precision there is."""
        value: Tensor = getattr(self, name)
        return value.to(torch.float32 if value.device.type == "mps" else torch.float64)

    def rows(self, readout: Tensor | None = None) -> Rows:
        """The systems as they are used, one a kernel; only ``a`` is normalised."""
        return Rows(unit_rows(self.wide("a")), self.wide("b"), self.wide("c") if readout is None else readout.to(self.wide("c")))

    def kernel(self, length: int, interval: float | None = None, readout: Tensor | None = None) -> Tensor:
        """K (D, length), float64."""
        if interval is not None and interval != 1:
            raise ValueError(f"{type(self).__name__} is discrete: it has no interval but 1; got {interval}")
        return self.spread(companion_kernel(*self.rows(readout), length))

    def system(self, interval: Tensor | float | None = None) -> Rows:
        """The systems of all channels."""
        return Rows(*map(self.spread, self.rows()))

    def advance(self, system: Rows, h: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, D, d), u (B, D) -> the next x, and y (B, D)."""
        a, b, c = (rows.to(h.dtype) for rows in system)
        h = F.pad(h[..., :-1], (1, 0)) + a * h[..., -1:] + b * u.unsqueeze(-1)
        return h, (c * h).sum(-1)

    def convolve(self, u: Tensor, interval: float | None, h: Tensor | None, return_state: bool) -> tuple[Tensor, Tensor | None]:
        """The state behind the sequence is that of the delay line: the last d inputs, and the last d values that came out at its end."""
        length, d = u.shape[1], self.d_state
        a, b, c = self.system()
        y = fft_conv(u, self.kernel(length).to(u.dtype))
        if h is not None:
            y = y + companion_kernel(a, h.to(a), c, length + 1)[..., 1:].to(u.dtype).mT
        if not return_state:
            return y, None
        end = F.pad(torch.ones_like(a[..., :1]), (d - 1, 0))
        before = fft_conv(F.pad(u, (0, 0, 1, 0))[:, :-1], companion_kernel(a, b, end, length).to(u.dtype))
        if h is not None:
            before = before + companion_kernel(a, h.to(a), end, length).to(u.dtype).mT
        last = fft_conv(_latest(u, d), b.to(u.dtype)) + fft_conv(_latest(before, d), a.to(u.dtype))
        last = last.mT
        return y, last if h is None else last + F.pad(h, (length, 0))[..., :d]

    def scan_positions(self, u: Tensor, line: Timeline, h: Tensor | None) -> tuple[Tensor, Tensor]:
        """As a dense system."""
        a, b, c = (rows.to(u.dtype) for rows in self.system())
        y, last = linear_system(u, companion(a), b, c.unsqueeze(1), state=h, timeline=line, return_state=True)
        return y.squeeze(-1), last

    def pack(self, h: Tensor) -> CompanionState:
        return CompanionState(h.contiguous())

    def unpack(self, state: State, x: Tensor) -> Tensor:
        if not isinstance(state, CompanionState):
            raise ValueError(f"expected a CompanionState; got a {type(state).__name__}: is it the state of another layer?")
        check_shape("state.x", state.x, (x.shape[0], self.d_model, self.d_state))
        return state.x.to(state_dtype(x))

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> CompanionState:
        """Zeros."""
        return CompanionState(zeros_for(self.a, device, batch_size, self.d_model, self.d_state))

    def _checked(self, line: Timeline) -> Timeline:
        return line.without_interval(type(self).__name__)


@register
class Companion(_Companion):
    """SpaceTime's open-loop layer: a companion system a channel, and a position-wise mixing that is added to it::

        x_t = A x_{t-1} + b u_t,   A = shift + a e_d^T
        v_t = c^T x_t + D u_t
        out = v + out_proj(dropout(gelu(v)))

    ``a`` is divided by its absolute sum, so that no eigenvalue leaves the unit circle.

    Args:
        d_model: width D.
        d_state: length of the delay line, d.
        n_kernels: different systems, dividing D; each serves D / n_kernels neighbouring channels. None: one a channel.
        activation: before out_proj.
        dropout: before out_proj.
        mode: see :class:`~statescan.mixers.lti.LTIMixer`.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`CompanionState`.
    """

    examples = ({"d_state": 5, "n_kernels": 8},)

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        n_kernels: int | None = None,
        activation: Activation = "gelu",
        dropout: float = 0.0,
        mode: Mode = "auto",
    ) -> None:
        super().__init__(d_model, activation=activation, final_act="none", dropout=dropout, tie_dropout=False, mode=mode)
        self.add_systems(d_state, n_kernels)

    def finish(self, y: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return y + super().finish(y)


@register
class ClosedLoopCompanion(_Companion):
    """SpaceTime's last layer: a companion system that can go on without inputs, by the inputs that it expects::

        open loop:    x_t = A x_{t-1} + b u_t,        y_t = c^T x_t
        closed loop:  x_{t+1} = (A + b k^T) x_t,      the input expected at t+1 is k^T x_t

    All of a, b, c and k are divided by their absolute sums. Calling the layer runs it open loop; :meth:`expect` gives what it
    expects of its next input at every position, and :meth:`roll` runs it closed loop from a state.

    Args:
        d_model: width D.
        d_state: length of the delay line, d.
        normalise: divide the rows by their absolute sums; without, a and k are the coefficients of an autoregression.
        mode: see :class:`~statescan.mixers.lti.LTIMixer`.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`CompanionState`. The published layer has a skip D that it does not use: here it is zero,
    and not trained. A forward pass does not read k: DDP around a network without :meth:`expect` or :meth:`roll` needs
    ``find_unused_parameters=True``.
    """

    dynamics: ClassVar[tuple[str, ...]] = ("a", "b", "c", "k", "D")
    residual_outputs: ClassVar[tuple[str, ...]] = ()  # type: ignore[assignment]
    unread = ("k",)
    examples = ({"d_state": 5},)

    def __init__(self, d_model: int, d_state: int = 64, normalise: bool = True, mode: Mode = "auto") -> None:
        super().__init__(d_model, mode=mode)
        del self.out_proj  # the output is the readout itself
        self.normalise = normalise
        self.D = nn.Parameter(torch.zeros(d_model), requires_grad=False)
        self.add_systems(d_state, None)
        self.k = nn.Parameter(torch.randn(d_model, d_state))

    def finish(self, y: Tensor) -> Tensor:
        """As it is."""
        return y

    def row(self, name: str) -> Tensor:
        """A parameter as it is used."""
        return unit_rows(self.wide(name)) if self.normalise else self.wide(name)

    def rows(self, readout: Tensor | None = None) -> Rows:
        return Rows(self.row("a"), self.row("b"), self.row("c") if readout is None else readout.to(self.wide("c")))

    def expect(self, u: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D): at position t what the layer expects at t+1, k^T x_t."""
        return fft_conv(u, self.kernel(u.shape[1], readout=self.row("k")).to(u.dtype))

    def roll(self, state: CompanionState, horizon: int) -> Tensor:
        """Closed loop from the state behind position l-1: c^T (A + b k^T)^h x, h = 0..horizon-1, (B, horizon, D).

        Step h = 0 reads the state as it is: y at the last position, which an encoder's training makes a forecast of the next one.
        """
        if horizon < 1:
            raise ValueError(f"horizon must be positive; got {horizon}")
        a, b, c = self.rows()
        k, readouts = self.row("k"), [c]
        for _ in range(horizon - 1):  # the readout goes backwards through the loop, once for all rows of the batch
            r = readouts[-1]
            r = torch.cat([r[:, 1:], (r * a).sum(-1, keepdim=True)], -1) + (r * b).sum(-1, keepdim=True) * k
            readouts.append(r)
        x = self.unpack(state, state.x[:, :, 0])
        return torch.einsum("dhn,bdn->bhd", torch.stack(readouts, 1).to(x.dtype), x)


def _latest(u: Tensor, d: int) -> Tensor:
    """The last d positions of (B, L, D), newest first, zeros before the beginning: (B, d, D)."""
    return F.pad(u, (0, 0, d, 0))[:, -d:].flip(1)
