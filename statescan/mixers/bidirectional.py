"""A causal mixer in both directions, right under padding and packing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from statescan.layers.linear import Linear
from statescan.mixers.mamba import Mamba
from statescan.protocols import Bus, CausalMixer, Mixer
from statescan.registry import register
from statescan.spec import Spec
from statescan.timeline import Timeline, hide


@register
class Bidirectional(Mixer):
    """One copy of a mixer reads the sequence forwards, another backwards, and their outputs merge::

        f = ahead(x),   b = flip(behind(flip(x)))
        add:    f + b                   mean:  (f + b) / 2
        concat: out_proj([f, b])        gate:  g f + (1 - g) b,  g = sigmoid(gate_proj(x))

    Documents are turned around one by one: the backward copy sees the timeline reversed, with its resets at the documents' ends and each
    interval before the position it now precedes. The present position is seen by both copies.

    Args:
        d_model: width D.
        mixer: what builds a copy, from the width.
        merge: how the directions meet, as above.
        tied: one set of weights for both directions; then, for add and mean, reversing the input reverses the output.

    Shapes: (B, L, *space, D) -> the same. No state: every output depends on the whole sequence.
    """

    examples = ({"mixer": Spec(Mamba)}, {"mixer": Spec(Mamba, d_state=4), "merge": "concat"})

    def __init__(
        self,
        d_model: int,
        mixer: Callable[[int], CausalMixer],
        merge: Literal["add", "mean", "concat", "gate"] = "add",
        tied: bool = False,
    ) -> None:
        super().__init__()
        self.merge = merge
        self.ahead = mixer(d_model)
        self.behind = None if tied else mixer(d_model)
        if not isinstance(self.ahead, CausalMixer):
            raise ValueError(f"Bidirectional turns a causal mixer around; {type(self.ahead).__name__} looks both ways already")
        if self.ahead.writes:
            raise ValueError(
                f"{type(self.ahead).__name__} writes {', '.join(self.ahead.writes)} on the bus, where two copies would collide"
            )
        if merge == "concat":
            self.out_proj = Linear(2 * d_model, d_model)
        elif merge == "gate":
            self.gate_proj = Linear(d_model, d_model)
        elif merge not in ("add", "mean"):
            raise ValueError(f"merge must be add, mean, concat or gate; got {merge!r}")
        if merge == "concat":
            self.residual_outputs = ("out_proj",)  # type: ignore[misc]
        else:
            copies = ("ahead",) if tied else ("ahead", "behind")
            self.residual_outputs = tuple(f"{copy}.{name}" for copy in copies for name in self.ahead.residual_outputs)  # type: ignore[misc]
        # capabilities are those of the mixer inside
        self.has_time = self.ahead.has_time  # type: ignore[misc]
        self.batch_dependent = self.ahead.batch_dependent  # type: ignore[misc]
        self.gathers_documents = self.ahead.gathers_documents  # type: ignore[misc]
        self.space_ndim = self.ahead.space_ndim  # type: ignore[misc]
        self.reads = self.ahead.reads  # type: ignore[misc]

    def forward(self, x: Tensor, timeline: Timeline | None = None, *, bus: Bus | None = None) -> Tensor:
        line = None if timeline is None else timeline.expand(x.shape[0], x.shape[1])
        x = hide(x, line)
        behind = self.ahead if self.behind is None else self.behind
        f = self.ahead(x, line, bus=bus)
        b = behind(x.flip(1), None if line is None else line.reversed(), bus=bus).flip(1)
        if self.merge == "add":
            return f + b
        if self.merge == "mean":
            return (f + b) / 2
        if self.merge == "gate":
            return torch.lerp(b, f, torch.sigmoid(self.gate_proj(x)).to(f.dtype))
        return hide(self.out_proj(torch.cat([f, b], dim=-1)), line)
