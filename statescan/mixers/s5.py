"""S5: one linear system of diagonal dynamics for all channels, evaluated by a scan; forwards, or in both directions.

Paper: Smith et al., "Simplified State Space Layers for Sequence Modeling", 2022, https://arxiv.org/abs/2208.04933. With
``timeline.reset`` it is the resettable S5 of Lu et al., "Structured State Space Models for In-Context Reinforcement Learning", 2023,
https://arxiv.org/abs/2303.03982.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan import dynamics as dyn
from statescan.layers.linear import Linear
from statescan.mixers.gla import zeros_for
from statescan.ops import diagonal_scan
from statescan.ops.checks import check_positive, check_shape, state_dtype
from statescan.protocols import Bus, CausalMixer, Mixer
from statescan.registry import register
from statescan.state import state as declare_state
from statescan.timeline import Timeline, hide

OutputInit = Literal["lecun_normal", "trunc_standard_normal", "complex_normal"]
S5Activation = Literal["full_glu", "half_glu1", "half_glu2", "gelu", "none"]


@declare_state
class S5State(NamedTuple):
    """Float32."""

    ssm: Tensor
    """(B, P, 2): real and imaginary parts."""


class S5System(Mixer):
    """What S5 is in one direction and in both::

        Lambda, delta = exp(log_step):   one of each a mode, P modes, driven by and read into all channels
        h_t = exp(delta Lambda) h_{t-1} + (exp(delta Lambda) - 1) / Lambda B x_t

    Args:
        d_model: width D.
        d_state: size of the real system; P is half of it with ``conj_sym``.
        blocks: the initial dynamics are that many copies of one system, of d_state / blocks states each.
        init: that system: ``legs`` the normal part of HiPPO-LegS; ``ptd`` all of LegS, slightly perturbed and then diagonalised
            (:func:`statescan.dynamics.ptd`).
        C_init: ``lecun_normal``: variance 1 / (d_state D), as the authors' code draws it; ``trunc_standard_normal``: 1 / d_state; both are
            turned into the coordinates of the states. ``complex_normal``: variance 1/2 of each part, and not turned.
        disc: discretisation, zoh or bilinear.
        dt_min, dt_max: initial steps, one a mode, are log-uniform between them.
        conj_sym: keep one of each pair of conjugate modes and count it twice; else all d_state of them.
        clip_eigs: hold real parts of eigenvalues below -1e-4.
        activation: with g = gelu(y): ``full_glu`` out1(g) sigmoid(out2(g)); ``half_glu1`` g sigmoid(out2(g)); ``half_glu2``
            y sigmoid(out2(g)); ``gelu``; ``none``.
        dropout: of channels, the same at all positions: behind gelu and behind the gate.

    An interval multiplies delta; a float one changes the sampling rate. Parameter names are those of the authors' public code.
    """

    has_time = True
    dynamics: ClassVar[tuple[str, ...]] = ("Lambda_re", "Lambda_im", "log_step", "D")
    learning_rates: Mapping[str, float] = {"Lambda_re": 1e-3, "Lambda_im": 1e-3, "log_step": 1e-3, "B": 1e-3}
    directions: ClassVar[int] = 1

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        blocks: int = 1,
        *,
        init: Literal["legs", "ptd"] = "legs",
        C_init: OutputInit = "lecun_normal",
        disc: Literal["zoh", "bilinear"] = "zoh",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        conj_sym: bool = True,
        clip_eigs: bool = False,
        activation: S5Activation = "half_glu1",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive(d_model=d_model, d_state=d_state, blocks=blocks)
        if d_state % (2 * blocks):
            raise ValueError(f"every one of the blocks holds pairs of states: d_state must be a multiple of {2 * blocks}; got {d_state}")
        if activation not in ("full_glu", "half_glu1", "half_glu2", "gelu", "none"):
            raise ValueError(f"activation must be full_glu, half_glu1, half_glu2, gelu or none; got {activation!r}")
        self.d_model, self.d_state, self.conj_sym, self.clip_eigs = d_model, d_state, conj_sym, clip_eigs
        self.disc, self.activation, self.dropout = disc, activation, dropout
        self.holds_input = disc == "zoh" and self.directions == 1
        Lambda, V, inverse = initial_blocks(d_state, blocks, conj_sym, init)
        modes = len(Lambda)
        where = torch.get_default_device()

        def placed(value: Tensor) -> nn.Parameter:
            return nn.Parameter(value.to(device=where, dtype=torch.float32).contiguous())

        self.Lambda_re, self.Lambda_im = placed(Lambda.real), placed(Lambda.imag)
        self.B = placed(torch.view_as_real(inverse @ _lecun(d_state, (d_state, d_model)).to(V)))
        self.C = placed(torch.cat([_readout(C_init, d_model, V) for _ in range(self.directions)], dim=1))
        self.D = nn.Parameter(torch.randn(d_model))
        self.log_step = placed(dyn.log_uniform((modes,), dt_min, dt_max).log())
        self.out1 = Linear(d_model, d_model) if activation == "full_glu" else None
        self.out2 = Linear(d_model, d_model) if activation not in ("gelu", "none") else None

    def system(self, interval: Tensor | float | None = None) -> tuple[Tensor, Tensor]:
        """Decay and gain of the input, complex (P,), or (B, L, P) for an interval (B, L)."""
        # one step for all: in float64, for it costs nothing; where every position has its own, in the precision of the scan
        wide = torch.float32 if self.log_step.device.type == "mps" else torch.float64
        wide = state_dtype(self.log_step) if isinstance(interval, Tensor) else wide
        real = self.Lambda_re.to(wide)
        Lambda = torch.complex(real.clamp(max=-1e-4) if self.clip_eigs else real, self.Lambda_im.to(wide))
        delta = self.log_step.to(wide).exp()
        if isinstance(interval, Tensor):
            delta = delta * interval.to(wide).unsqueeze(-1)
        elif interval is not None:
            if not (math.isfinite(interval) and interval >= 0):
                raise ValueError(f"timeline.interval must be finite and not negative; got {interval}")
            delta = delta * interval
        log_decay, gain = dyn.discretize_diagonal(Lambda, torch.ones_like(Lambda), delta, self.disc)  # type: ignore[arg-type]
        return log_decay.exp(), gain

    def states(self, u: Tensor, line: Timeline, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """u (B, L, D), zero where nothing exists -> every state (B, L, P) and the last (B, P), complex."""
        interval = line.interval
        if isinstance(interval, Tensor) and line.mask is not None:
            interval = torch.where(line.mask, interval, 1.0)
        decay, gain = self.system(interval)
        dtype = state_dtype(u)
        kind = torch.complex128 if dtype == torch.float64 else torch.complex64
        B = torch.view_as_complex(self.B.to(gain.real.dtype).contiguous())
        if not isinstance(interval, Tensor):
            B = gain.unsqueeze(-1) * B
        # one product of real matrices, whose rows are real and imaginary parts in turn
        weight = torch.view_as_real(B).mT.flatten(0, 1).to(dtype)
        driven = torch.view_as_complex(F.linear(u.to(dtype), weight).to(dtype).unflatten(-1, (-1, 2)))
        if isinstance(interval, Tensor):
            driven = gain.to(kind) * driven
        else:
            decay = decay.view(1, 1, -1)
        return diagonal_scan(decay.to(kind), driven, state=state, timeline=Timeline(line.reset, line.mask), return_state=True)  # type: ignore[return-value]

    def read(self, h: Tensor, u: Tensor) -> Tensor:
        """States of all directions (B, L, directions * P) and inputs -> (B, L, D)."""
        scale = 2.0 if self.conj_sym else 1.0
        weight = (scale * self.C * self.C.new_tensor([1.0, -1.0])).flatten(1).to(h.real.dtype)
        y = F.linear(torch.view_as_real(h).flatten(-2), weight)
        return (y + self.D.to(y.dtype) * u.to(y.dtype)).to(u.dtype)

    def finish(self, y: Tensor) -> Tensor:
        """The activation, with dropout of whole channels: (B, L, D) -> the same."""
        if self.activation == "none":
            return self._drop(y)
        inner = self._drop(F.gelu(y, approximate="tanh"))
        if self.out2 is None:
            return inner
        value = y if self.activation == "half_glu2" else inner if self.out1 is None else self.out1(inner)
        return self._drop(value * torch.sigmoid(self.out2(inner)))

    def _drop(self, y: Tensor) -> Tensor:
        return F.dropout1d(y.mT, self.dropout).mT if self.training and self.dropout else y


@register
class S5(S5System, CausalMixer):
    """The system in one direction::

        y_t = 2 Re(C h_t) + D x_t,   out = gate(gelu(y))

    The arguments are those of :class:`S5System`. Shapes: (B, L, D) -> (B, L, D). State: :class:`S5State`. A reset clears the state before
    the position is read.
    """

    examples = (
        {"d_state": 8},
        {"d_state": 12, "blocks": 3, "activation": "full_glu", "C_init": "complex_normal", "disc": "bilinear", "conj_sym": False},
    )

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: S5State | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        check_shape("x", x, ("B", "L", self.d_model))
        line = Timeline() if timeline is None else timeline.expand(x.shape[0], x.shape[1])
        u = hide(x, line)
        h, last = self.states(u, line, None if state is None else self._modes(state, x))
        y = hide(self.finish(self.read(h, u)), line)
        return (y, S5State(torch.view_as_real(last))) if return_state else y

    def _modes(self, state: S5State, x: Tensor) -> Tensor:
        if not isinstance(state, S5State):
            raise ValueError(f"expected an S5State; got a {type(state).__name__}: is it the state of another layer?")
        check_shape("state.ssm", state.ssm, (x.shape[0], self.log_step.numel(), 2))
        return torch.view_as_complex(state.ssm.to(state_dtype(x)).contiguous())

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> S5State:
        """Zeros."""
        return S5State(zeros_for(self.log_step, device, batch_size, self.log_step.numel(), 2))


@register
class BidirectionalS5(S5System):
    """The same modes in both directions, of one set of dynamics and inputs; C reads the states of both::

        y_t = 2 Re(C [ahead_t, behind_t]) + D x_t,   out = gate(gelu(y))

    The arguments are those of :class:`S5System`. The present position drives both directions. Documents are turned around one by one.
    Shapes: (B, L, D) -> (B, L, D). No state: every output depends on the whole sequence.
    """

    directions = 2
    examples = ({"d_state": 8, "blocks": 2, "activation": "half_glu2", "clip_eigs": True},)

    def forward(self, x: Tensor, timeline: Timeline | None = None, *, bus: Bus | None = None) -> Tensor:
        check_shape("x", x, ("B", "L", self.d_model))
        line = Timeline() if timeline is None else timeline.expand(x.shape[0], x.shape[1])
        u = hide(x, line)
        ahead, _ = self.states(u, line, None)
        behind, _ = self.states(u.flip(1), line.reversed(), None)
        return hide(self.finish(self.read(torch.cat([ahead, behind.flip(1)], dim=-1), u)), line)


def initial_blocks(
    d_state: int, blocks: int, conj_sym: bool = True, init: Literal["legs", "ptd"] = "legs"
) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues (P,), eigenvectors (d_state, P), and the rows (P, d_state) that take states to modes, of a block-diagonal matrix."""
    one = dyn.nplr("legs", d_state // blocks) if init == "legs" else dyn.ptd(d_state // blocks)
    Lambda, V = one.Lambda, one.V
    inverse = one.inverse if isinstance(one, dyn.Diagonalised) else V.mH
    if not conj_sym:
        Lambda, V, inverse = torch.cat([Lambda, Lambda.conj()]), torch.cat([V, V.conj()], dim=1), torch.cat([inverse, inverse.conj()])
    return Lambda.repeat(blocks), torch.block_diag(*[V] * blocks), torch.block_diag(*[inverse] * blocks)


def _lecun(fan_in: int, shape: tuple[int, ...]) -> Tensor:
    """Normal of variance 1 / fan_in, cut off at two deviations of what is drawn, float64."""
    drawn = nn.init.trunc_normal_(torch.empty(shape, dtype=torch.float64, device="cpu"), a=-2.0, b=2.0)
    return drawn / (0.87962566103423978 * math.sqrt(fan_in))


def _readout(init: OutputInit, d_model: int, V: Tensor) -> Tensor:
    """C (D, P, 2) of one direction."""
    d_state, modes = V.shape
    if init == "complex_normal":
        return torch.view_as_real(dyn.complex_normal(d_model, modes))
    if init not in ("lecun_normal", "trunc_standard_normal"):
        raise ValueError(f"C_init must be lecun_normal, trunc_standard_normal or complex_normal; got {init!r}")
    fan_in = d_state * (d_model if init == "lecun_normal" else 1)
    return torch.view_as_real(torch.view_as_complex(_lecun(fan_in, (d_model, d_state, 2))) @ V)
