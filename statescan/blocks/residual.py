"""The pre-norm residual block: x + scale mixer(norm(x))."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from statescan.layers.norm import NormKind, make_norm
from statescan.protocols import Bus, CausalMixer, Mixer, State
from statescan.timeline import Timeline


class Residual(nn.Module):
    """One residual block around a causal mixer, a mixer of any kind, or a layer that looks at single positions (``forward(x)``).

    A float32 stream stays float32 whatever the mixer computes in. The state is the mixer's; the empty tuple where there is none.
    ``scale`` is a fixed multiplier of what the mixer adds, and ``dropout`` of that is dropped in training.
    """

    shared: tuple[str, ...] = ()
    """Names of submodules that all blocks of one part of a backbone have in common."""

    def __init__(
        self, d_model: int, mixer: nn.Module, norm_eps: float = 1e-5, norm: NormKind = "rms", scale: float = 1.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.scale, self.dropout = scale, dropout
        self.norm = make_norm(norm, d_model, norm_eps)
        self.mixer = mixer

    def forward(
        self, x: Tensor, timeline: Timeline | None = None, *, state: State | None = None, bus: Bus | None = None
    ) -> tuple[Tensor, State]:
        """The new stream and the new state."""
        y, state = self.mix(self.norm(x), timeline, state, bus)
        y = y.to(x.dtype)
        if self.dropout:
            y = F.dropout(y, self.dropout, self.training)
        return x + (y if self.scale == 1 else self.scale * y), state

    def mix(self, h: Tensor, timeline: Timeline | None, state: State | None, bus: Bus | None) -> tuple[Tensor, State]:
        """Call the mixer, of whatever kind it is."""
        if isinstance(self.mixer, CausalMixer):
            return self.mixer(h, timeline, state=state, return_state=True, bus=bus)  # type: ignore[no-any-return]
        if isinstance(self.mixer, Mixer):
            if state:
                raise ValueError(f"{type(self.mixer).__name__} looks ahead, so it has no state: run whole sequences")
            return self.mixer(h, timeline, bus=bus), ()
        return self.mixer(h), ()

    def init_state(self, batch_size: int, **where: Any) -> State:
        """The mixer's."""
        return self.mixer.init_state(batch_size, **where) if isinstance(self.mixer, CausalMixer) else ()
