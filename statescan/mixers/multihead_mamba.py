"""Mamba whose inner channels fall into heads, each with a step, an input map and an output map of its own.

Paper: Glorioso et al., "Zamba: A Compact 7B SSM Hybrid Model", 2024, https://arxiv.org/abs/2405.16712.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from statescan.layers.delta import RawSteps
from statescan.layers.grouped import GroupedLinear
from statescan.mixers.mamba import Mamba, MambaState
from statescan.ops.checks import check_positive
from statescan.registry import register
from statescan.timeline import Timeline, hide


@register
class MultiheadMamba(Mamba):
    """Mamba with the two small projections in blocks, one a head of P = E / H channels::

        [x, z]    = in_proj(u)
        x         = silu(conv1d(x))
        [r, B, C] = x_proj[h](x[h]),   delta = softplus(dt_proj[h](r))       for each head h
        h_t       = exp(delta_t A) h_{t-1} + delta_t B_t x_t,   A = -exp(A_log)
        y         = out_proj((C_t h_t + D x_t) * silu(z))

    One head is :class:`Mamba`.

    Args:
        d_model: width D.
        num_heads: heads H, a divisor of E.
        d_state: states a channel, N.
        d_conv: taps of the short convolution, K.
        expand: inner width E = expand * d_model.
        dt_rank: rank of a head's step; "auto" is ceil(d_model / 16).
        dt_min, dt_max, dt_init_floor: initial steps are log-uniform between the two, and at least the last.
        conv_bias: bias of the convolution.
        bias: biases of in_proj and out_proj.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`MambaState`. An interval multiplies delta, as in Mamba.
    """

    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"num_heads": 3, "d_state": 5, "d_conv": 3, "expand": 1.5, "dt_rank": 3, "bias": True, "conv_bias": False},
    )

    def __init__(
        self,
        d_model: int,
        num_heads: int = 2,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__(
            d_model, d_state, d_conv, expand, dt_rank, dt_min, dt_max, dt_init_floor=dt_init_floor, conv_bias=conv_bias, bias=bias
        )
        check_positive(num_heads=num_heads)
        if self.d_inner % num_heads:
            raise ValueError(f"num_heads must divide the inner width, {self.d_inner}; got {num_heads}")
        self.num_heads = num_heads
        size, steps = self.d_inner // num_heads, self.dt_proj.bias
        assert steps is not None
        self.x_proj = GroupedLinear(num_heads, size, self.dt_rank + 2 * d_state, bias=False)  # type: ignore[assignment]
        self.dt_proj = GroupedLinear(num_heads, self.dt_rank, size)  # type: ignore[assignment]
        self.dt_proj.bias = nn.Parameter(steps.detach().view(num_heads, size))

    def streams(
        self, u: Tensor, timeline: Timeline | None = None, state: MambaState | None = None
    ) -> tuple[tuple[Tensor, RawSteps, Tensor, Tensor, Tensor], Tensor]:
        """What enters the scan, ``(x, steps, B, C, z)`` with B and C (B, L, H, N), and the convolution's tail."""
        x, z = self.in_proj(hide(u, timeline)).chunk(2, dim=-1)
        x, conv = self.conv1d(x, timeline, state=None if state is None else state.conv)
        r, B, C = self.x_proj(x.unflatten(-1, (self.num_heads, -1))).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return (x, RawSteps(self.dt_proj(r).flatten(-2), None, None), B, C, z), conv
