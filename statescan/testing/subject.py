"""What the laws run on: a layer or model in eval mode, its capabilities, its inputs, and the implementations it can run under."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from statescan import state as states
from statescan.ops import dispatch
from statescan.protocols import CausalMixer, Mixer
from statescan.state import State
from statescan.testing.compare import TOLERANCE, Outcome, run
from statescan.timeline import Timeline

SPACE = (2, 3, 2)
"""Sizes of the spatial axes in generated inputs: as many of them as the mixer has."""


@dataclass(frozen=True)
class Mode:
    """A dtype and, by op, the implementation forced. ``ran`` says which ops really ran it."""

    name: str
    dtype: torch.dtype
    forced: dict[str, str] = field(default_factory=dict)
    gradients: bool = True

    @contextmanager
    def active(self) -> Iterator[None]:
        with dispatch.implementation(**self.forced):
            yield

    def __str__(self) -> str:
        return f"{self.name} {str(self.dtype).removeprefix('torch.')}" + ("" if self.gradients else " no_grad")


@dataclass(frozen=True)
class Refusal:
    """An implementation that was not run: which op refused, and its sentence."""

    name: str
    reason: str


class Subject:
    """A module under test. Capabilities are read from the class, so a user's own layer is treated as ours are."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        *,
        width: int | None = None,
        vocab_size: int | None = None,
        image: tuple[int, int, int] | None = None,
    ) -> None:
        self.name = name
        self.width = width
        self.vocab_size = vocab_size
        self.image = image
        self.modules = {torch.float32: module.float().eval()}
        self.causal = isinstance(module, CausalMixer) or all(hasattr(module, verb) for verb in ("scan", "step", "init_state"))
        layers = [module] if isinstance(module, Mixer) else [child for child in module.modules() if isinstance(child, Mixer)]
        self.timed = image is None
        self.has_time = self.timed and all(layer.has_time for layer in layers)
        self.holds_input = isinstance(module, Mixer) and module.holds_input
        self.batch_dependent = any(layer.batch_dependent for layer in layers)
        self.gathers_documents = any(layer.gathers_documents for layer in layers)
        self.folds_length = any(layer.folds_length for layer in layers)
        self.unread = any(layer.unread for layer in layers)
        self.estimates_gradients = any(layer.estimates_gradients for layer in layers)
        declared = (getattr(child, "law_tolerance", 0.0) for child in module.modules())
        self.tolerance = {**TOLERANCE, torch.float32: max(TOLERANCE[torch.float32], *declared)}
        """The laws', or what a part declares for itself in float32 because it rounds (``law_tolerance``)."""
        self.causal_tolerance = max((layer.causal_tolerance for layer in layers), default=0.0)
        self.memory: int | None = getattr(module, "memory", None)
        self.space = SPACE[: int(getattr(module, "space_ndim", 0))]
        self._truth: dict[str, Outcome] = {}

    # -- the module ---------------------------------------------------------------------------------------------------------

    @property
    def module(self) -> nn.Module:
        return self.modules[torch.float32]

    def at(self, dtype: torch.dtype) -> nn.Module:
        """The module in a dtype: the float32 weights, converted."""
        if dtype not in self.modules:
            self.modules[dtype] = copy.deepcopy(self.module).to(dtype)
        return self.modules[dtype]

    def fresh(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """An independent copy, to be changed at will."""
        return copy.deepcopy(self.at(dtype))

    def call(self, module: nn.Module, x: Tensor, timeline: Timeline | None, state: State | None) -> tuple[Tensor, State | None]:
        """The module as the contract calls it; a layer that is not causal has no state."""
        if self.causal:
            return module(x, timeline, state=state, return_state=True)
        return (module(x, timeline) if self.timed else module(x)), None

    # -- its inputs ---------------------------------------------------------------------------------------------------------

    def inputs(self, batch: int, length: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
        """Random inputs, the same numbers in every dtype: features, token ids for a model with a vocabulary, or images."""
        generator = torch.Generator().manual_seed(seed + 17)
        if self.vocab_size is not None:
            return torch.randint(0, self.vocab_size, (batch, length), generator=generator)
        if self.image is not None:
            return torch.randn(batch, *self.image, generator=generator).to(dtype)
        assert self.width is not None
        return torch.randn(batch, length, *self.space, self.width, generator=generator).to(dtype)

    def poison(self, x: Tensor, mask: Tensor) -> Tensor:
        """NaN where the mask is False; other tokens, for ids."""
        missing = ~mask.view(*mask.shape, *[1] * (x.ndim - 2))
        if not x.is_floating_point():
            assert self.vocab_size is not None
            return torch.where(missing, (x * 7 + 3) % self.vocab_size, x)
        return torch.where(missing, torch.full_like(x, float("nan")), x)

    def init_state(self, module: nn.Module, batch: int) -> State:
        return module.init_state(batch, **({"space": self.space} if self.space else {}))  # type: ignore[operator]

    def warm_state(self, module: nn.Module, batch: int, seed: int = 5) -> State:
        """A legal state that is not the initial one: what is left after a few positions."""
        x = self.inputs(batch, 5, next(module.parameters()).dtype, seed)
        with torch.no_grad():
            return states.clone(self.call(module, x, None, None)[1])

    # -- its implementations ------------------------------------------------------------------------------------------------

    def modes(self, names: Sequence[str] | None = None, dtype: torch.dtype | None = None) -> tuple[list[Mode], list[Refusal]]:
        """The modes this module can run in: every implementation of its ops, in float64 where it accepts it, else in float32.

        An implementation of several ops is forced where it does not refuse; a refusal is reported. The last mode is the dispatcher's own
        choice without gradients, where fast paths live.
        """
        modes: list[Mode] = []
        refusals: list[Refusal] = []
        for name in names or list(reversed(dispatch.PREFERENCE)):
            for candidate in (torch.float64, torch.float32) if dtype is None else (dtype,):
                forced, refused = self._force(name, candidate)
                refusals += [Refusal(f"{name} {str(candidate).removeprefix('torch.')}", reason) for reason in refused]
                if forced:
                    modes.append(Mode(name, candidate, forced))
                    break
        if not modes and not names:
            modes.append(Mode("plain torch", dtype or torch.float64))
        if not names:
            modes.append(Mode("default", dtype or torch.float32, gradients=False))
        if not modes:
            raise ValueError(f"{self.name} runs none of {list(names or ())}: {'; '.join(r.reason for r in refusals)}")
        return modes, refusals

    def _force(self, name: str, dtype: torch.dtype) -> tuple[dict[str, str], list[str]]:
        """By op, the implementation that could be forced on this module's calls; and the refusals."""
        forced = {op.name: name for op in dispatch.ops.values() if name in op.implementations}
        refused: list[str] = []
        while forced:
            try:
                used = self._used(Mode(name, dtype, forced))
            except ValueError as error:
                op = str(error).partition(":")[0]
                if "the forced implementation" not in str(error) or op not in forced:
                    raise
                forced = {k: v for k, v in forced.items() if k != op}
                refused.append(str(error))
            else:
                return {op: name for op in forced if op in used}, refused
        return {}, refused

    def _used(self, mode: Mode) -> set[str]:
        """The ops that run on a plain call, on one with everything on the timeline, and on a step."""
        module = self.at(mode.dtype)
        x = self.inputs(2, 5, mode.dtype)
        used: set[str] = set()
        for timeline in (None, full_timeline(self, 2, 5)):
            with mode.active(), recording() as ran:
                run(lambda x, line, state: self.call(module, x, line, state), module, x, timeline)
            used |= set(ran)
        if self.causal:
            with mode.active(), recording() as ran, torch.no_grad():
                module.step(x[:, 0], self.init_state(module, 2))  # type: ignore[operator]
            used |= set(ran)
        return used

    def truth(self, key: str, compute: object, reference: Mode) -> Outcome:
        """Results of the reference, computed once a key."""
        if key not in self._truth:
            with reference.active():
                self._truth[key] = compute()  # type: ignore[operator]
        return self._truth[key]


@contextmanager
def recording() -> Iterator[dict[str, str]]:
    """Op -> implementation for every call inside the block; what came before stays in the history."""
    before = list(dispatch._history)
    dispatch._history.clear()
    ran: dict[str, str] = {}
    try:
        yield ran
    finally:
        ran.update({record[0]: record[1] for record in dispatch._history})
        after = list(dispatch._history)
        dispatch._history.clear()
        dispatch._history.extend([*before, *after])


def full_timeline(subject: Subject, batch: int, length: int, seed: int = 3) -> Timeline | None:
    """Resets, holes and (where the layer has time) uneven intervals at once; None for a model that takes no timeline."""
    if not subject.timed:
        return None
    generator = torch.Generator().manual_seed(seed)
    reset = torch.rand(batch, length, generator=generator) < 0.25
    mask = torch.rand(batch, length, generator=generator) < 0.7
    interval = torch.rand(batch, length, generator=generator) * 2 + 0.1 if subject.has_time else None
    return Timeline(reset, mask, interval)
