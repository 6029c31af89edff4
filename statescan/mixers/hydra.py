"""Hydra: Mamba-2 in both directions as one quasiseparable matrix, low-rank on either side of a free diagonal.

Paper: Hwang, Lahoti, Dao and Gu, "Hydra: Bidirectional State Space Models Through Generalized Matrix Mixers", 2024,
https://arxiv.org/abs/2407.09941. Parameter names are those of the released code.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.layers import GatedRMSNorm, init_delta_bias
from statescan.layers.linear import Linear
from statescan.ops import causal_conv1d, ssd
from statescan.ops.checks import check_positive
from statescan.protocols import Bus, Mixer
from statescan.registry import register
from statescan.timeline import Timeline, hide


class CenteredConv1d(nn.Module):
    """Depthwise convolution on (B, L, E) around each position, then SiLU; weight (E, 1, K), K odd.

    Taps reach over existing positions of the same document: those up to the present are one causal convolution, those behind it another,
    of the reversed sequence.
    """

    def __init__(self, width: int, kernel_size: int, bias: bool = True) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"a convolution around a position has an odd number of taps; got {kernel_size}")
        bound = 1 / math.sqrt(kernel_size)
        self.weight = nn.Parameter(torch.empty(width, 1, kernel_size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(width).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Tensor, timeline: Timeline | None = None) -> Tensor:
        taps = self.weight.squeeze(1)
        past, future = taps.tensor_split([taps.shape[1] // 2 + 1], dim=1)
        back = None if timeline is None else timeline.reversed()
        y = causal_conv1d(x, past, self.bias, timeline=timeline)
        y = y + causal_conv1d(x.flip(1), F.pad(future.flip(1), (0, 1)), timeline=back).flip(1)  # type: ignore[operator, union-attr]
        return F.silu(y)

    def extra_repr(self) -> str:
        width, _, taps = self.weight.shape
        return f"{width}, kernel_size={taps}, bias={self.bias is not None}"


@register
class Hydra(Mixer):
    """The mixer of Hydra, per head, with (B, C, delta) of its own for each direction and one x::

        [z, xBC, dt] = in_proj(u);   [x, B, C, B', C'] = silu(conv1d(xBC)), a convolution around each position
        y  = shift(ssd(x; delta, B, C)) + flip(shift(ssd(flip(x); flip(delta'), flip(B'), flip(C')))) + (D + fc_D(x)) x
        out = out_proj(RMSNorm(y) * silu(z))

    shift moves a sequence one position on, so that neither side counts the diagonal: entry (i, j) of the matrix is
    C_{i-1} exp(sum of delta_k A over j < k < i) B_j delta_j for i > j, the same of the other direction at i + 1 for i < j, and
    D + fc_D(x_i) for i = j. A = -exp(A_log), dt_bias, D and fc_D serve both directions.

    Args:
        d_model: width D.
        d_state: states a channel and direction, N.
        d_conv: taps of the convolution, odd.
        expand: inner width E = expand * d_model.
        headdim: channels a head, P.
        ngroups: groups of heads that share B and C, G.
        dt_min, dt_max, dt_init_floor: initial steps are log-uniform between the two, and at least the last.
        dt_limit: clamp of the step.
        learnable_init_states: train the state in front of either end.
        bias: biases of in_proj and out_proj.
        conv_bias: bias of the convolution.
        chunk_size: positions a chunk; an implementation may choose smaller ones.
        norm_eps: of the gated norm.

    Shapes: (B, L, D) -> (B, L, D). No state: every output depends on the whole document. An interval multiplies delta.
    """

    has_time = True
    dynamics = ("A_log", "D", "dt_bias", "init_states")
    residual_outputs = ("out_proj",)
    examples = ({"d_state": 5, "headdim": 8, "d_conv": 5, "ngroups": 2, "bias": True, "learnable_init_states": True, "chunk_size": 4},)

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        d_conv: int = 7,
        expand: float = 2,
        headdim: int = 64,
        ngroups: int = 1,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = (0.0, float("inf")),
        learnable_init_states: bool = False,
        bias: bool = False,
        conv_bias: bool = True,
        chunk_size: int = 256,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        check_positive(d_model=d_model, d_state=d_state, expand=expand, headdim=headdim, ngroups=ngroups, chunk_size=chunk_size)
        self.d_inner = int(expand * d_model)
        if self.d_inner < 1 or self.d_inner % headdim or self.d_inner // headdim % ngroups:
            raise ValueError(
                f"headdim must divide the inner width {self.d_inner} into heads that ngroups divides; got {headdim} and {ngroups}"
            )
        self.headdim, self.nheads, self.chunk_size = headdim, self.d_inner // headdim, chunk_size
        self.dt_limit, self.maps = (float(dt_limit[0]), float(dt_limit[1])), (2, 2, ngroups, d_state)
        width = self.d_inner + math.prod(self.maps)
        self.in_proj = Linear(d_model, self.d_inner + width + 2 * self.nheads, bias=bias)
        self.conv1d = CenteredConv1d(width, d_conv, conv_bias)
        self.init_states = nn.Parameter(torch.zeros(self.nheads, headdim, d_state)) if learnable_init_states else None
        self.dt_bias = nn.Parameter(init_delta_bias((self.nheads,), dt_min, dt_max, dt_init_floor))
        self.A_log = nn.Parameter(torch.zeros(self.nheads))
        self.D = nn.Parameter(torch.ones(self.nheads))
        self.fc_D = Linear(self.d_inner, self.nheads, bias=False)
        self.norm = GatedRMSNorm(self.d_inner, eps=norm_eps, norm_before_gate=True)
        self.out_proj = Linear(self.d_inner, d_model, bias=bias)

    def forward(self, x: Tensor, timeline: Timeline | None = None, *, bus: Bus | None = None) -> Tensor:
        v, delta_raw, maps, diagonal, z = self.streams(x, timeline)
        return hide(self.out_proj(self.norm(self.mix(v, delta_raw, maps, diagonal, timeline).flatten(-2), z)), timeline)

    def streams(self, u: Tensor, timeline: Timeline | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What :meth:`mix` takes, and the gate z (B, L, E)."""
        z, xbc, delta_raw = self.in_proj(hide(u, timeline)).split(
            [self.d_inner, self.d_inner + math.prod(self.maps), 2 * self.nheads], dim=-1
        )
        x, maps = self.conv1d(xbc, timeline).split([self.d_inner, math.prod(self.maps)], dim=-1)
        diagonal = self.fc_D(x)
        return (
            x.unflatten(-1, (self.nheads, self.headdim)), delta_raw.unflatten(-1, (2, self.nheads)), maps.unflatten(-1, self.maps),
            diagonal + self.D.to(diagonal.dtype), z,
        )  # fmt: skip

    def mix(self, x: Tensor, delta_raw: Tensor, maps: Tensor, diagonal: Tensor, timeline: Timeline | None = None) -> Tensor:
        """The quasiseparable matrix times x, (B, L, H, P).

        x (B, L, H, P); delta_raw (B, L, 2, H), forwards and backwards; maps (B, L, 2, 2, G, N), B and C of each; diagonal (B, L, H).
        """
        batch, length = x.shape[:2]
        line = None if timeline is None else both_ways(timeline.expand(batch, length))
        B, C = torch.cat([maps[:, :, 0], maps[:, :, 1].flip(1)]).unbind(2)
        y = ssd(
            torch.cat([x, x.flip(1)]), torch.cat([delta_raw[:, :, 0], delta_raw[:, :, 1].flip(1)]), -torch.exp(self.A_log), B, C,
            delta_bias=self.dt_bias, delta_softplus=True, delta_limit=self.dt_limit, state=self.init_states, reset_to=self.init_states,
            timeline=line, chunk_size=self.chunk_size,
        )  # fmt: skip
        assert isinstance(y, Tensor)
        one_on = y.new_tensor([1.0, 0.0]).expand(y.shape[2] * y.shape[3], 2)
        y = causal_conv1d(y.flatten(-2), one_on, timeline=line).view(y.shape)  # type: ignore[union-attr]
        return y[:batch] + y[batch:].flip(1) + diagonal.unsqueeze(-1) * x


def both_ways(line: Timeline) -> Timeline:
    """Rows of the timeline, then the rows of the flipped sequence."""
    pairs = zip(line, line.reversed(), strict=True)
    return Timeline(*(torch.cat([a, b]) if isinstance(a, Tensor) and isinstance(b, Tensor) else a for a, b in pairs))  # type: ignore[arg-type]
