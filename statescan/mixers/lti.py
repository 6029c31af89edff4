"""What all layers of linear time-invariant systems share: one system a channel, its skip, and a position-wise mixing of the channels.

A subclass is a *kernel producer*: it turns parameters into convolution kernels, and into a recurrence where the mathematics has one.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from statescan.layers.linear import Linear
from statescan.ops import dispatch
from statescan.ops.checks import check_positive, check_shape, state_dtype
from statescan.ops.fft_conv import fft_conv
from statescan.protocols import Bus, CausalMixer, Mixer, State
from statescan.timeline import Timeline, hide

Activation = Literal["gelu", "silu", "relu", "none"]
FinalAct = Literal["glu", "none"]
Mode = Literal["auto", "conv", "scan"]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "silu": F.silu, "relu": F.relu, "none": lambda y: y}

SCAN_CHUNK = 64
"""Positions whose states exist at once in scan mode: memory is that of SCAN_CHUNK states, whatever the length."""


class Readout(Mixer):
    """What stands behind systems that are read out C times each: the first readouts of all D systems, then the second ones.

    Args:
        d_model: width D.
        channels: readouts C.
        activation: after the systems.
        final_act: ``glu`` doubles out_proj and gates one half by the other; ``none`` does not.
        dropout: before out_proj.
        tie_dropout: drop a channel at all positions of a sequence together.
    """

    causal_tolerance = 1e-5
    residual_outputs = ("out_proj",)

    def __init__(
        self, d_model: int, channels: int, activation: Activation, final_act: FinalAct, dropout: float, tie_dropout: bool = True
    ) -> None:
        super().__init__()
        check_positive(d_model=d_model, channels=channels)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1); got {dropout}")
        self.d_model, self.channels = d_model, channels
        self.activation, self.final_act, self.dropout, self.tie_dropout = activation, final_act, dropout, tie_dropout
        self.D = nn.Parameter(torch.randn(channels * d_model))
        self.out_proj = Linear(channels * d_model, (2 if final_act == "glu" else 1) * d_model)

    def copied(self, x: Tensor) -> Tensor:
        """The input of every kernel: (..., D) -> (..., C D)."""
        return x if self.channels == 1 else x.repeat(*(1,) * (x.ndim - 1), self.channels)

    def skip(self, y: Tensor, u: Tensor) -> Tensor:
        """y + D u: (..., C D) and (..., D) -> (..., C D), in y's precision."""
        return y + self.D.to(y.dtype) * self.copied(u).to(y.dtype)

    def finish(self, y: Tensor) -> Tensor:
        """Activation, dropout, mixing of the channels, gate: (..., C D) -> (..., D)."""
        y = _ACTIVATIONS[self.activation](y)
        if self.training and self.dropout:
            tied = self.tie_dropout and y.ndim == 3
            y = y * F.dropout(torch.ones_like(y[:, :1] if tied else y), self.dropout)
        y = self.out_proj(y)
        return F.glu(y, dim=-1) if self.final_act == "glu" else y


class LTIMixer(Readout, CausalMixer):
    """One linear time-invariant system a channel, run as a convolution, a scan or a recurrence::

        y_t = (K * u)_t + D u_t + echo of the incoming state
        out = glu(out_proj(dropout(activation(y))))

    Without resets or uneven intervals it runs as a convolution, under a mask too where a sequence begins (no state comes in); otherwise as
    a scan (``mode`` forces one, ``explain()`` names the choice). A float interval keeps the convolution. Gradients flow through every way.

    A subclass calls ``super().__init__(d_model, ...)``, makes the parameters of its systems, and defines

    - ``kernel(length, interval=None, readout=None) -> (C D, length)``: K from the stored parameters, in the widest precision it has.
      ``readout`` stands in for the parameter of that role, :attr:`readout_name` (:class:`TwoSided` has a second one).
    - ``convolve(u, interval, h, return_state) -> (y, last or None)``: y = K * u plus the echo of h.
    - ``scan_positions(u, timeline, h) -> (y, last)``: the same under any timeline.
    - ``system(interval)`` and ``advance(system, h, u) -> (h, y)``: one position, for ``step``.
    - ``pack`` and ``unpack``: h, one tensor (B, ...), to and from the State; ``init_state``.

    The default of ``scan_positions`` advances position by position.

    Args:
        d_model: width D.
        activation, final_act, dropout, tie_dropout, channels: see :class:`Readout`.
        mode: ``auto`` as above; ``conv`` refuses what a convolution cannot serve; ``scan`` always scans.
    """

    readout_name: ClassVar[str] = "C"

    def __init__(
        self,
        d_model: int,
        *,
        activation: Activation = "gelu",
        final_act: FinalAct = "glu",
        dropout: float = 0.0,
        tie_dropout: bool = True,
        mode: Mode = "auto",
        channels: int = 1,
    ) -> None:
        super().__init__(d_model, channels, activation, final_act, dropout, tie_dropout)
        self.mode = mode

    # -- the contract -------------------------------------------------------------------------------------------------------

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: State | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
        readout_back: Tensor | None = None,
    ) -> Any:
        """``readout_back`` is :class:`TwoSided`'s: a second readout, with which the layer looks ahead and has no state."""
        check_shape("x", x, ("B", "L", self.d_model))
        line = self._checked(Timeline() if timeline is None else timeline.expand(x.shape[0], x.shape[1]))
        u = hide(x, line).to(state_dtype(x))
        if readout_back is not None:
            assert state is None
            assert not return_state
            assert not isinstance(line.interval, Tensor)
            y = self._both_ways(u, line, readout_back)
            return hide(self.finish(self.skip(y, u).to(x.dtype)), line)
        h = None if state is None else self.unpack(state, x)
        last: Any
        if self._convolves(line, u, h):
            assert not isinstance(line.interval, Tensor)
            if line.mask is None:
                y, last = self.convolve(u, line.interval, h, return_state)
            else:  # what exists moves to the end of its row: zeros before it leave nothing behind
                order = line.mask.long().argsort(dim=1, stable=True).unsqueeze(-1)
                y, last = self.convolve(u.gather(1, order.expand_as(u)), line.interval, None, return_state)
                y = torch.zeros_like(y).scatter(1, order.expand_as(y), y)
        else:
            y, last = self.scan_positions(u, line, h)
        y = hide(self.finish(self.skip(y, u).to(x.dtype)), line)
        return (y, self.pack(last)) if return_state else y

    def step(self, x: Tensor, state: State, timeline: Timeline | None = None, bus: Bus | None = None) -> tuple[Tensor, State]:
        """x (B, D); the recurrence once, at a cost that knows no length."""
        check_shape("x", x, ("B", self.d_model))
        line = self._checked(Timeline() if timeline is None else timeline)
        u = x if line.mask is None else torch.where(line.mask.unsqueeze(-1), x, 0)
        u = u.to(state_dtype(x))
        start = self.unpack(state, x)
        interval = line.interval
        if isinstance(interval, Tensor):
            interval = interval if line.mask is None else torch.where(line.mask, interval, 1)
            interval = interval.view(-1, 1, 1)
        if line.reset is not None:
            start = torch.where(_like(line.reset, start), 0, start)
        after, y = self.advance(self.system(interval), start, u)
        y = self.finish(self.skip(y, u).to(x.dtype))
        if line.mask is not None:
            y = torch.where(line.mask.unsqueeze(-1), y, 0)
            after = torch.where(_like(line.mask, after), after, start)
        return y, self.pack(after)

    # -- what a subclass defines --------------------------------------------------------------------------------------------

    @abstractmethod
    def kernel(self, length: int, interval: float | None = None, readout: Tensor | None = None) -> Tensor:
        """K (C D, length)."""

    @abstractmethod
    def system(self, interval: Tensor | float | None = None) -> Any:
        """The discretised systems; an interval tensor is (B, 1, 1)."""

    @abstractmethod
    def advance(self, system: Any, h: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """h (B, ...) and u (B, D) -> the next h, and y (B, C D) without the skip."""

    @abstractmethod
    def convolve(self, u: Tensor, interval: float | None, h: Tensor | None, return_state: bool) -> tuple[Tensor, Tensor | None]:
        """u (B, L, D) -> y (B, L, C D), and the state behind it if it is wanted."""

    @abstractmethod
    def pack(self, h: Tensor) -> State:
        """What goes out."""

    @abstractmethod
    def unpack(self, state: State, x: Tensor) -> Tensor:
        """What comes in, checked against x (B, ..., D)."""

    def start(self, u: Tensor) -> Tensor:
        """h before the first position of u."""
        return self.unpack(self.init_state(u.shape[0], device=u.device), u)

    def scan_positions(self, u: Tensor, line: Timeline, h: Tensor | None) -> tuple[Tensor, Tensor]:
        """u (B, L, D) under any timeline -> y (B, L, C D) and the state behind it, position by position."""
        h = self.start(u) if h is None else h
        fixed = None if isinstance(line.interval, Tensor) else self.system(line.interval)
        outputs = []
        for t in range(u.shape[1]):
            at = line.at(t)
            start = h if at.reset is None else torch.where(_like(at.reset, h), 0, h)
            system = self.system(at.interval.view(-1, 1, 1)) if isinstance(at.interval, Tensor) else fixed
            h, y = self.advance(system, start, u[:, t])
            if at.mask is not None:
                h = torch.where(_like(at.mask, h), h, start)
            outputs.append(y)
        return torch.stack(outputs, 1), h

    # -- help ---------------------------------------------------------------------------------------------------------------

    def chunked(
        self,
        chunk: Callable[[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | float | None], tuple[Tensor, Tensor]],
        u: Tensor,
        line: Timeline,
        h: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """``chunk(u, h, reset, mask, interval) -> (y, last)`` over SCAN_CHUNK positions at a time, recomputed in the backward pass.

        A compiler, which must serve every length, sees one chunk.
        """
        length = u.shape[1]
        if isinstance(line.interval, Tensor) and line.mask is not None:
            line = line._replace(interval=torch.where(line.mask, line.interval, 1))
        if torch.compiler.is_compiling():
            return chunk(u, h, *line)
        forced = dispatch.forced()  # the backward pass recomputes under the implementations of this one
        outputs = []
        for start in range(0, length, SCAN_CHUNK):
            part = u[:, start : start + SCAN_CHUNK]
            line_part = line.slice(start, start + SCAN_CHUNK)
            if torch.is_grad_enabled() and length > SCAN_CHUNK:
                y, h = checkpoint(
                    chunk, part, h, *line_part, use_reentrant=False, preserve_rng_state=False,
                    context_fn=lambda: (nullcontext(), dispatch.implementation(**forced)),
                )  # type: ignore[misc]  # fmt: skip
            else:
                y, h = chunk(part, h, *line_part)
            outputs.append(y)
        return torch.cat(outputs, dim=1), h

    def _both_ways(self, u: Tensor, line: Timeline, readout_back: Tensor) -> Tensor:
        def convolve(rows: Tensor, line: Timeline | None) -> Tensor:
            interval = None if line is None else line.interval
            assert not isinstance(interval, Tensor)
            kernels = (self.kernel(rows.shape[1], interval, readout).to(rows.dtype) for readout in (None, readout_back))
            return fft_conv(self.copied(rows), *kernels)

        return convolve(u, line) if line.reset is None and line.mask is None else line.apart(convolve, u)

    def _checked(self, line: Timeline) -> Timeline:
        """The timeline, whose interval this layer can serve."""
        interval = line.interval
        if isinstance(interval, Tensor):
            return line if self.has_time else line.without_interval(type(self).__name__)
        if interval is not None and not (math.isfinite(interval) and interval >= 0):
            raise ValueError(f"timeline.interval must be finite and not negative; got {interval}")
        return line

    def _convolves(self, line: Timeline, u: Tensor, h: Tensor | None) -> bool:
        uneven = ["resets"] if line.reset is not None else []
        uneven += ["a mask behind a state"] if line.mask is not None and h is not None else []
        uneven += ["intervals"] if isinstance(line.interval, Tensor) else []
        name = type(self).__name__
        if uneven and self.mode == "conv":
            raise ValueError(f"mode='conv' does not serve {' and '.join(uneven)}: build the {name} with mode='auto' or 'scan'")
        refused = {"convolution": f"the timeline has {' and '.join(uneven)}"} if uneven else {}
        scans = bool(uneven) or self.mode == "scan"
        why = "mode='scan'" if self.mode == "scan" else "it serves any timeline" if scans else "the timeline is even"
        dispatch.record(name, "scan" if scans else "convolution", why, refused, {"u": u})
        return not scans


def _like(flag: Tensor, h: Tensor) -> Tensor:
    """bool (B,) -> (B, 1, ...), of h's axes."""
    return flag.view(-1, *(1,) * (h.ndim - 1))


def placed(value: Tensor) -> Tensor:
    """An initial value, made on the CPU in float64, where and as parameters live."""
    return value.to(device=torch.get_default_device(), dtype=torch.float32).contiguous()


def complex_of(dtype: torch.dtype) -> torch.dtype:
    """complex128 for float64, else complex64."""
    return torch.complex128 if dtype == torch.float64 else torch.complex64


def read_modes(h: Tensor, readout: Tensor) -> Tensor:
    """Re sum_n readout_n h_n, in h's precision, without complex products."""
    weights = torch.view_as_real(readout.conj().resolve_conj()).to(h.real.dtype)
    return (torch.view_as_real(h) * weights).sum((-2, -1))
