"""SGConv: a long kernel of few parameters, whose pieces are the coarser and the smaller the farther they reach back.

Paper: Li et al., "What Makes Convolutional Models Great on Long Sequence Modeling?", 2022, https://arxiv.org/abs/2210.09298.
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statescan.mixers.long_conv import TwoSidedConv, WindowedConv
from statescan.mixers.lti import Activation, FinalAct
from statescan.ops.checks import check_positive
from statescan.parameters import Dynamic
from statescan.registry import register

UpsampleMode = Literal["linear", "nearest"]
Join = Literal["cat", "sum"]
Decay = Literal["scale", "power"]


class ScaledKernel(Dynamic):
    """Kernels (W, d 2^(S-1)) from pieces w_i (W, d), i = 0..S-1, S = 1 + ceil(log2(l_max / d))::

        cat:  k = concat_i [ alpha^(S-1-i) upsample(w_i, 2^max(0, i-1)) ] / norm
        sum:  k = sum_i alpha^(S-1-i) upsample(w_i, 2^i) / norm         (all of them start at the present)
        power instead of alpha:  k_j (j + 1)^(-power)

    ``norm`` is that of the initial kernel, one a row: a buffer, taken when the layer is made. Copies of a channel share alpha or power.
    """

    dynamics = ("pieces", "norm", "alpha", "power")

    def __init__(
        self,
        width: int,
        copies: int,
        l_max: int,
        d_kernel: int,
        decay_min: float,
        decay_max: float,
        mode: UpsampleMode,
        join: Join,
        decay: Decay,
    ) -> None:
        super().__init__()
        check_positive(l_max=l_max, d_kernel=d_kernel)
        if mode not in ("linear", "nearest") or join not in ("cat", "sum") or decay not in ("scale", "power"):
            raise ValueError(f"mode is linear or nearest, join cat or sum, and decay scale or power; got {mode!r}, {join!r} and {decay!r}")
        if not 0 < decay_min <= decay_max:
            raise ValueError(f"expected 0 < decay_min <= decay_max; got {decay_min} and {decay_max}")
        self.l_max, self.mode, self.join, self.copies = l_max, mode, join, copies
        scales = 1 + math.ceil(math.log2(max(1.0, l_max / d_kernel)))
        self.pieces = nn.Parameter(torch.randn(scales, copies * width, d_kernel))
        alpha = torch.linspace(decay_min, decay_max, width) if decay == "scale" else torch.ones(width)
        self.register_buffer("alpha", alpha.repeat(copies).unsqueeze(-1))
        self.power = None if decay == "scale" else nn.Parameter(torch.empty(width).uniform_(decay_min, decay_max))
        self.learning_rates = {"pieces": 1e-3} | ({} if self.power is None else {"power": 1e-3})
        self.register_buffer("norm", torch.ones(copies * width, 1))
        with torch.no_grad():
            self.norm: Tensor = self.whole().norm(dim=-1, keepdim=True)

    def whole(self) -> Tensor:
        """(W, d 2^(S-1)), before it is cut to l_max."""
        scales, _, size = self.pieces.shape
        length = size * 2 ** (scales - 1)
        alpha: Tensor = self.alpha  # type: ignore[assignment]
        parts = []
        for i, piece in enumerate(self.pieces):
            factor = 2**i if self.join == "sum" else 2 ** max(0, i - 1)
            stretched = piece if factor == 1 else F.interpolate(piece.unsqueeze(0), scale_factor=factor, mode=self.mode).squeeze(0)
            parts.append(stretched * alpha ** (scales - 1 - i))
        if self.join == "sum":
            k = functools.reduce(torch.add, (F.pad(part, (0, length - part.shape[-1])) for part in parts))
        else:
            k = torch.cat(parts, -1)
        if self.power is not None:
            place = torch.arange(1, length + 1, dtype=k.dtype, device=k.device)
            k = k * place ** -self.power.repeat(self.copies).unsqueeze(-1)
        return k / self.norm

    def forward(self) -> Tensor:
        """(W, l_max)"""
        return self.whole()[:, : self.l_max]


@register
class SGConv(WindowedConv):
    """A convolution with a kernel of log l_max pieces, in :class:`LongKernel`'s place::

        k = concat_i [ alpha^(S-1-i) upsample(w_i, 2^max(0, i-1)) ] / norm,   out = out_proj(dropout(gelu(k * u + D u)))

    The kernel knows nothing beyond ``l_max``, and there is no recurrence: streaming keeps a window of l_max - 1 inputs, and a step costs
    l_max products a channel.

    Args:
        d_model: width D.
        l_max: taps.
        d_kernel: length d of a piece.
        decay_min: alpha of the first channel: what each doubling of the distance divides a kernel by.
        decay_max: alpha of the last one.
        mode: how pieces are stretched, linear or nearest.
        join: ``cat``, as above; ``sum`` stretches w_i by 2^i, and all of them start at the present and add up.
        decay: ``scale``, as above; ``power`` is (j + 1)^-p at tap j in alpha's place, p learned, one a channel, uniform between decay_min
            and decay_max at first.
        activation: behind the convolution.
        final_act: ``glu`` doubles out_proj and gates one half by the other; ``none`` does not.
        dropout: before out_proj, of whole channels.

    Shapes: (B, L, D) -> (B, L, D), of any L. State: :class:`WindowState`.
    """

    examples = (
        {"l_max": 10, "d_kernel": 2},
        {"l_max": 9, "d_kernel": 4, "join": "sum", "decay": "power", "decay_min": 0.5, "mode": "nearest", "final_act": "glu"},
    )

    def __init__(
        self,
        d_model: int,
        l_max: int = 1024,
        d_kernel: int = 32,
        *,
        decay_min: float = 2.0,
        decay_max: float = 2.0,
        mode: UpsampleMode = "linear",
        join: Join = "cat",
        decay: Decay = "scale",
        activation: Activation = "gelu",
        final_act: FinalAct = "none",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(d_model, l_max, 1, activation, final_act, dropout)
        self.filter = ScaledKernel(d_model, 1, l_max, d_kernel, decay_min, decay_max, mode, join, decay)

    def taps(self) -> Tensor:
        return self.filter().unsqueeze(0)


@register
class BidirectionalSGConv(TwoSidedConv):
    """:class:`SGConv` with a second kernel for the future, which starts at the next position. The arguments are the same; no state."""

    examples = ({"l_max": 9, "d_kernel": 2},)

    def __init__(
        self,
        d_model: int,
        l_max: int = 1024,
        d_kernel: int = 32,
        *,
        decay_min: float = 2.0,
        decay_max: float = 2.0,
        mode: UpsampleMode = "linear",
        join: Join = "cat",
        decay: Decay = "scale",
        activation: Activation = "gelu",
        final_act: FinalAct = "none",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(d_model, l_max, 1, activation, final_act, dropout)
        self.filter = ScaledKernel(d_model, 2, l_max, d_kernel, decay_min, decay_max, mode, join, decay)

    def taps(self) -> Tensor:
        return self.filter().unflatten(0, (2, -1))
