"""Mixers side by side on one input, their outputs added.

Paper: Zuo et al., "Falcon-H1: A Family of Hybrid-Head Language Models Redefining Efficiency and Performance", 2025,
https://arxiv.org/abs/2507.22448, where a Mamba-2 mixer and attention share one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from statescan.mixers.attention import Attention
from statescan.mixers.mamba2 import Mamba2
from statescan.protocols import Bus, CausalMixer
from statescan.registry import register
from statescan.spec import Spec
from statescan.state import state as declare_state
from statescan.timeline import Timeline


@declare_state
class ParallelState(NamedTuple):
    """One state a part, in the order of the parts."""

    parts: tuple[Any, ...]


@register
class Parallel(CausalMixer):
    """y = sum over parts of out_i part_i(in_i x), with fixed multipliers in_i and out_i.

    Args:
        d_model: width D.
        parts: name of the submodule -> factory of a causal mixer, given the width.
        inputs: name -> in_i; 1 for a part that is not named.
        outputs: name -> out_i; 1 for a part that is not named.

    Shapes: (B, L, D) -> (B, L, D). State: :class:`ParallelState`. Parts run in order, and a part sees what an earlier one left on the bus.
    """

    examples = (
        {
            "parts": {
                "mamba": Spec(Mamba2, d_state=5, headdim=16, chunk_size=4),
                "self_attn": Spec(Attention, num_heads=4, num_kv_heads=2, window=8),
            },
            "inputs": {"mamba": 1.25, "self_attn": 0.75},
            "outputs": {"mamba": 0.5},
        },
    )

    def __init__(
        self,
        d_model: int,
        parts: Mapping[str, Callable[[int], CausalMixer]],
        inputs: Mapping[str, float] | None = None,
        outputs: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.names = tuple(parts)
        for what, multipliers in (("inputs", inputs or {}), ("outputs", outputs or {})):
            if unknown := set(multipliers) - set(parts):
                raise ValueError(f"{what} names {sorted(unknown)}, but the parts are {sorted(parts)}")
        self.inputs = tuple(float((inputs or {}).get(name, 1.0)) for name in self.names)
        self.outputs = tuple(float((outputs or {}).get(name, 1.0)) for name in self.names)
        written: set[str] = set()
        read: set[str] = set()
        for name, factory in parts.items():
            part = factory(d_model)
            if not isinstance(part, CausalMixer):
                raise ValueError(f"part {name!r} must be a causal mixer; got {type(part).__name__}")
            read |= set(part.reads) - written
            written |= set(part.writes)
            self.add_module(name, part)
        self.reads, self.writes = tuple(sorted(read)), tuple(sorted(written))
        if not parts:
            raise ValueError("parts is empty: name at least one mixer")

    @property
    def residual_outputs(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of the parts."""
        return tuple(f"{name}.{output}" for name in self.names for output in self.get_submodule(name).residual_outputs)  # type: ignore[union-attr]

    def forward(
        self,
        x: Tensor,
        timeline: Timeline | None = None,
        *,
        state: ParallelState | None = None,
        return_state: bool = False,
        bus: Bus | None = None,
    ) -> Any:
        if timeline is not None:
            timeline = timeline.without_interval(type(self).__name__)
        y, states = None, []
        for i, (name, before, after) in enumerate(zip(self.names, self.inputs, self.outputs, strict=True)):
            part = self.get_submodule(name)
            out, last = part(x * before, timeline, state=None if state is None else state.parts[i], return_state=True, bus=bus)
            y = out * after if y is None else y + out * after
            states.append(last)
        return (y, ParallelState(tuple(states))) if return_state else y

    def init_state(
        self,
        batch_size: int,
        *,
        space: Sequence[int] = (),
        capacity: int | None = None,
        context: Any = None,
        device: torch.device | str | None = None,
    ) -> ParallelState:
        """Every part's."""
        where: dict[str, Any] = {"space": space, "capacity": capacity, "context": context, "device": device}
        return ParallelState(tuple(self.get_submodule(name).init_state(batch_size, **where) for name in self.names))  # type: ignore[operator]
