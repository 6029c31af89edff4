"""Linear recurrent units: the LRU with fixed complex eigenvalues, and the RG-LRU, real and gated.

Papers: Orvieto et al., "Resurrecting Recurrent Neural Networks for Long Sequences", 2023, https://arxiv.org/abs/2303.06349; De et al.,
"Griffin: Mixing Gated Linear Recurrences with Local Attention for Efficient Language Models", 2024, https://arxiv.org/abs/2402.19427.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.layers import CausalConv1d
from statescan.layers.linear import Linear
from statescan.mixers.gla import zeros_for
from statescan.mixers.sight import Sight
from statescan.ops import diagonal_scan
from statescan.ops.checks import check_positive, state_dtype
from statescan.parameters import Dynamic
from statescan.protocols import Bus, CausalMixer
from statescan.registry import register
from statescan.state import state as declare_state
from statescan.timeline import Timeline, hide

STEEPEST = 1000.0
"""Bound of the slope of sqrt(1 - a^2), as in the authors' code."""


@declare_state
class LRUState(NamedTuple):
    """Float32."""

    h: Tensor
    """(B, N, 2): real and imaginary parts."""


@declare_state
class RGLRUState(NamedTuple):
    """Float32, but for the count."""

    conv: Tensor
    """(B, K-1, W): the last existing inputs of the convolution, oldest first."""
    h: Tensor
    """(B, W)"""
    position: Tensor
    """int64 (B,): existing positions since the last reset; the first one counts for more."""


@register
class LRU(CausalMixer):
    """N complex modes, driven by and read into all channels::

        lambda = exp(-exp(nu_log) + i exp(theta_log)),   gamma = exp(gamma_log)
        h_t = lambda h_{t-1} + gamma (B x_t)
        y_t = Re(C h_t) + D x_t

    Args:
        d_model: width D.
        d_state: modes, N; None is D.
        r_min: least radius of an initial eigenvalue; squared radii are uniform.
        r_max: largest radius.
        max_phase: largest phase of an initial eigenvalue; phases are uniform from 0.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`LRUState`. Parameter names are those of the authors' public code.
    """

    dynamics = ("nu_log", "theta_log", "gamma_log", "D")
    examples = ({"d_state": 12}, {"d_state": 5, "r_min": 0.5, "r_max": 0.9, "max_phase": 0.3})

    def __init__(
        self, d_model: int, d_state: int | None = None, r_min: float = 0.0, r_max: float = 1.0, max_phase: float = 2 * math.pi
    ) -> None:
        super().__init__()
        modes = d_model if d_state is None else d_state
        check_positive(d_model=d_model, d_state=modes)
        if not 0 <= r_min < r_max <= 1:
            raise ValueError(f"the radii must satisfy 0 <= r_min < r_max <= 1; got {r_min} and {r_max}")
        if not max_phase > 0:
            raise ValueError(f"max_phase must be positive; got {max_phase}")
        tiny = torch.finfo(torch.float32).tiny
        square = (torch.rand(modes).clamp(1e-6, 1 - 1e-6) * (r_max**2 - r_min**2) + r_min**2).double()
        self.nu_log = nn.Parameter((-square.log() / 2).log().float())
        self.theta_log = nn.Parameter((max_phase * torch.rand(modes)).clamp(min=tiny).log())
        self.gamma_log = nn.Parameter((torch.log1p(-square) / 2).float())
        self.B_re, self.B_im = (nn.Parameter(torch.randn(modes, d_model) / math.sqrt(2 * d_model)) for _ in range(2))
        self.C_re, self.C_im = (nn.Parameter(torch.randn(d_model, modes) / math.sqrt(modes)) for _ in range(2))
        self.D = nn.Parameter(torch.randn(d_model))

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: LRUState | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        if timeline is not None:
            timeline = timeline.without_interval(type(self).__name__)
        x = hide(x, timeline)
        dtype, gamma = state_dtype(x), self.gamma_log.exp()
        driven = torch.complex(*(F.linear(x, part).to(dtype) * gamma for part in (self.B_re, self.B_im)))
        decay = torch.exp(torch.complex(-self.nu_log.exp(), self.theta_log.exp())).view(1, 1, -1)
        h, last = diagonal_scan(
            decay, driven, state=None if state is None else torch.view_as_complex(state.h), timeline=timeline, return_state=True
        )
        y = F.linear(h.real, self.C_re.to(dtype)) - F.linear(h.imag, self.C_im.to(dtype)) + self.D * x
        y = hide(y.to(x.dtype), timeline)
        return (y, LRUState(torch.view_as_real(last))) if return_state else y

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> LRUState:
        """Zeros."""
        return LRUState(zeros_for(self.nu_log, device, batch_size, self.nu_log.numel(), 2))


class RealGatedUnit(Dynamic):
    """The decay and the input of the RG-LRU: a = exp(-8 r softplus(recurrent_param)), and sqrt(1 - a^2) i x, or i x at a first position."""

    dynamics = ("recurrent_param",)

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        size = width // heads
        radius = (torch.rand(width) * (0.999**2 - 0.9**2) + 0.9**2).sqrt()
        self.recurrent_param = nn.Parameter((-radius.log()).expm1().log())
        self.input_gate_weight, self.recurrent_gate_weight = (nn.Parameter(torch.randn(heads, size, size) / size**0.5) for _ in range(2))
        self.input_gate_bias, self.recurrent_gate_bias = (nn.Parameter(torch.zeros(heads, size)) for _ in range(2))

    def forward(self, x: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, L, W), first bool (B, L) -> decay and input, (B, L, W), float32 or float64."""
        dtype, parts = state_dtype(x), x.unflatten(-1, (self.input_gate_weight.shape[0], -1))

        def gate(weight: Tensor, bias: Tensor) -> Tensor:
            return torch.sigmoid((torch.einsum("blhi,hio->blho", parts, weight) + bias).flatten(-2).to(dtype))

        log_decay = -8 * gate(self.recurrent_gate_weight, self.recurrent_gate_bias) * F.softplus(self.recurrent_param)
        driven = x.to(dtype) * gate(self.input_gate_weight, self.input_gate_bias)
        gain = bounded_root(-torch.expm1(2 * log_decay))
        return log_decay.exp(), torch.where(first.unsqueeze(-1), driven, gain * driven)


def bounded_root(x: Tensor) -> Tensor:
    """sqrt(x), with a bounded slope: that of the root is infinite at 0, where nothing decays."""
    small = x < 1 / (4 * STEEPEST**2)
    line = STEEPEST * x
    return torch.where(small, line + (x.detach().sqrt() - line.detach()), torch.where(small, 1, x).sqrt())


@register
class RGLRU(CausalMixer):
    """Griffin's recurrent block: a gated branch beside a short convolution and W real modes, one a channel::

        x = conv(linear_x(u)),   r = sigmoid(W_a x + b_a),   i = sigmoid(W_x x + b_x)      W_a, W_x: one block a head
        a = exp(-8 r softplus(recurrent_param))
        h_t = a h_{t-1} + sqrt(1 - a^2) (i x)                                             h_t = i x at the first position
        y = linear_out(h gelu(linear_y(u)))

    Args:
        d_model: width D.
        width: inner width W; None is D.
        num_heads: blocks of the gates, a divisor of W.
        d_conv: taps, K.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`RGLRUState`. Parameter names are those of RecurrentGemma's checkpoints.
    """

    residual_outputs = ("linear_out",)
    examples = ({"num_heads": 4}, {"width": 24, "num_heads": 2, "d_conv": 3})

    def __init__(self, d_model: int, width: int | None = None, num_heads: int = 1, d_conv: int = 4) -> None:
        super().__init__()
        width = d_model if width is None else width
        check_positive(d_model=d_model, width=width, num_heads=num_heads, d_conv=d_conv)
        if width % num_heads:
            raise ValueError(f"num_heads must divide the inner width; got {num_heads} and {width}")
        self.linear_y = Linear(d_model, width)
        self.linear_x = Linear(d_model, width)
        self.conv_1d = CausalConv1d(width, d_conv)
        nn.init.normal_(self.conv_1d.weight, std=0.1 / math.sqrt(d_conv))
        self.rg_lru = RealGatedUnit(width, num_heads)
        self.linear_out = Linear(width, d_model)

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: RGLRUState | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        if timeline is not None:
            timeline = timeline.without_interval(type(self).__name__)
        u = hide(x, timeline)
        batch, length = u.shape[:2]
        sight = Sight.of(timeline, None if state is None else state.position, batch, length, u.device)
        x, conv = self.conv_1d(self.linear_x(u), timeline, state=None if state is None else state.conv)
        decay, driven = self.rg_lru(x, sight.position == 0)
        h, last = diagonal_scan(decay, driven, state=None if state is None else state.h, timeline=timeline, return_state=True)
        gate = self.linear_y(u)
        y = hide(self.linear_out(h.to(gate.dtype) * F.gelu(gate, approximate="tanh")), timeline)
        return (y, RGLRUState(conv, last, sight.last)) if return_state else y

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> RGLRUState:
        """Zeros, and nothing seen."""
        weight = self.conv_1d.weight
        conv = zeros_for(weight, device, batch_size, weight.shape[2] - 1, weight.shape[0])
        return RGLRUState(
            conv, zeros_for(weight, device, batch_size, weight.shape[0]), torch.zeros(batch_size, dtype=torch.long, device=conv.device)
        )
