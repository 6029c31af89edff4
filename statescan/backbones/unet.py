"""A U-Net over time: stages of residual blocks at ever coarser rates and greater widths, and back.

Paper: Goel, Gu, Donahue and Re, "It's Raw! Audio Generation with State-Space Models", 2022, https://arxiv.org/abs/2202.09729.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from statescan.blocks import Residual
from statescan.layers import MLP
from statescan.layers.norm import NormKind
from statescan.mixers.pooled import Pooled
from statescan.ops.checks import check_positive
from statescan.ops.frugal import frugal
from statescan.protocols import Bus, State
from statescan.registry import register
from statescan.state import state as declare_state
from statescan.timeline import Timeline, hide


@declare_state
class PoolUNetState(NamedTuple):
    """One state a block, and that of the coarser stages."""

    down: tuple[Any, ...]
    pooled: Any
    """A :class:`statescan.mixers.pooled.PooledState`; the empty tuple in the coarsest stage."""
    up: tuple[Any, ...]


@register
class PoolUNet(nn.Module):
    """Stages of blocks around a coarser U-Net; a stage is ``n_layers`` times [residual mixer, residual MLP]::

        coarsest:    out = x + stage(x)
        plain:       y = x + pooled(x),           out = y + stage(y)              pooled: blocks of positions down, the coarser U-Net, up
        with unet:   y = down_stage(x) + pooled(down_stage(x)),   and behind each block of the up stage the stream that entered
                     its counterpart on the way down is added

    Args:
        d_model: width D of the finest stage.
        mixer: factory of the blocks' causal mixer, given the width of its stage.
        n_layers: pairs of blocks in each stage.
        pool: block sizes, from the finest stage on; as many coarser stages as there are.
        expand: growth of the width from a stage to the next coarser.
        ff: inner width of the MLPs, in widths.
        unet: blocks on the way down too.
        norm: kind of the blocks' norm.
        norm_eps: of every norm.

    Shapes: (B, L, D) -> (B, L, D), any L: :class:`statescan.mixers.pooled.Pooled` says how. The contract is a causal mixer's; the state
    is a :class:`PoolUNetState`.
    """

    def __init__(
        self,
        d_model: int,
        mixer: Callable[[int], nn.Module],
        n_layers: int = 8,
        pool: tuple[int, ...] = (4, 4),
        expand: int = 2,
        ff: int = 2,
        unet: bool = False,
        norm: NormKind = "layer",
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        check_positive(d_model=d_model, n_layers=n_layers, ff=ff)

        def stage() -> nn.ModuleList:
            layers: list[nn.Module] = []
            for _ in range(n_layers):
                layers += [mixer(d_model), MLP(d_model, ff * d_model, "gelu", bias=True)]
            return nn.ModuleList(Residual(d_model, layer, norm_eps, norm) for layer in layers)

        def coarser(width: int) -> PoolUNet:
            return PoolUNet(width, mixer, n_layers, pool[1:], expand, ff, unet, norm, norm_eps)

        self.d_model = d_model
        self.down = stage() if unet and pool else nn.ModuleList()
        self.pooled = Pooled(d_model, coarser, pool[0], expand) if pool else None
        self.up = stage()

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: PoolUNetState | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        """(B, L, D) -> (B, L, D); zeros at positions that do not exist."""
        before = PoolUNetState((None,) * len(self.down), None, (None,) * len(self.up)) if state is None else state
        x = hide(x, timeline)
        streams, down, up = [x], [], []
        for layer, given in zip(self.down, before.down, strict=True):
            with frugal(x):
                x, after = layer(x, timeline, state=given, bus=bus)
            streams.append(x)
            down.append(after)
        pooled: State = ()
        if self.pooled is not None:
            coarse, pooled = self.pooled(x, timeline, state=before.pooled, return_state=True, bus=bus)
            x = streams.pop() + coarse
        entered = x
        for layer, given in zip(self.up, before.up, strict=True):
            with frugal(x):
                x, after = layer(x, timeline, state=given, bus=bus)
            x = x + streams.pop() if self.down else x
            up.append(after)
        y = hide(x if self.down else x + entered, timeline)
        return (y, PoolUNetState(tuple(down), pooled, tuple(up))) if return_state else y

    def scan(
        self, x: Tensor, state: PoolUNetState | None = None, timeline: Timeline | None = None, bus: Bus | None = None
    ) -> tuple[Tensor, State]:
        """``(y, state)``: a chunk."""
        return self(x, timeline, state=state, return_state=True, bus=bus)  # type: ignore[no-any-return]

    def step(self, x: Tensor, state: PoolUNetState, timeline: Timeline | None = None, bus: Bus | None = None) -> tuple[Tensor, State]:
        """One position, x (B, D). Coarser stages run when a row completes a block."""
        line = None if timeline is None else timeline.as_sequence()
        y, state = self(x.unsqueeze(1), line, state=state, return_state=True, bus=bus)
        return y.squeeze(1), state

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> PoolUNetState:
        """Every block's."""
        where: dict[str, Any] = {"space": space, "capacity": capacity, "context": context, "device": device}
        down, up = (tuple(layer.init_state(batch_size, **where) for layer in layers) for layers in (self.down, self.up))  # type: ignore[operator]
        return PoolUNetState(down, () if self.pooled is None else self.pooled.init_state(batch_size, **where), up)
