"""A residual block with its norm behind the mixer, as OLMo's attention layers have it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from statescan.blocks.residual import Residual
from statescan.protocols import Bus, State
from statescan.registry import register
from statescan.timeline import Timeline


@register
class PostNorm(Residual):
    """x + norm(mixer(x)).

    Args:
        d_model: width D.
        mixer: factory of a mixer or layer, given the width.
        norm_eps: of the norm.
    """

    def __init__(self, d_model: int, mixer: Callable[[int], nn.Module], norm_eps: float = 1e-5) -> None:
        super().__init__(d_model, mixer(d_model), norm_eps)

    def forward(
        self, x: Tensor, timeline: Timeline | None = None, *, state: State | None = None, bus: Bus | None = None
    ) -> tuple[Tensor, State]:
        """The new stream and the new state."""
        y, state = self.mix(x.to(self.norm.weight.dtype), timeline, state, bus)
        return x + self.norm(y).to(x.dtype), state
