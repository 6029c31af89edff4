"""Where do two ways to run a model part? Laws 2 to 4 for the whole model, then block by block, down to the first module that differs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from statescan.protocols import CausalMixer
from statescan.state import State
from statescan.testing.compare import TOLERANCE, expect_close, state_fields
from statescan.testing.laws import law_apart, law_causal, law_chunks, law_gradients
from statescan.testing.oracles import apart, chunks, steps, whole
from statescan.testing.report import Report
from statescan.testing.run import model_subject
from statescan.testing.subject import Subject, recording
from statescan.timeline import Timeline


@dataclass(frozen=True)
class Divergence:
    """One module whose two sides differ, at the first time and in the state fields named."""

    module: str
    path: str
    first_time: int | None
    errors: dict[str, float]
    """Dtype -> largest error, relative to the largest value of the whole run."""
    fields: tuple[str, ...]
    implementations: dict[str, dict[str, str]]
    """Side -> op -> implementation that ran."""

    def __str__(self) -> str:
        when = "" if self.first_time is None else f", first at time {self.first_time}"
        errors = ", ".join(f"{error:.2e} in {dtype}" for dtype, error in self.errors.items())
        lines = [f"{self.module}: {self.path} differs from whole{when}; error {errors}"]
        if self.fields:
            lines.append(f"  state fields that differ: {', '.join(self.fields)}")
        lines += [f"  {side} ran {_say(ran)}" for side, ran in self.implementations.items()]
        return "\n".join(lines)


@dataclass
class Parity:
    """What :func:`parity` found. ``first`` is the first diverging module in the order in which they run."""

    model: str
    laws: Report
    divergences: list[Divergence] = field(default_factory=list)
    compared: list[str] = field(default_factory=list)
    implementations: dict[str, str] = field(default_factory=dict)

    @property
    def first(self) -> Divergence | None:
        return self.divergences[0] if self.divergences else None

    @property
    def ok(self) -> bool:
        return not self.divergences and not self.laws.failed

    def __str__(self) -> str:
        lines = [str(self.laws), f"ops ran {_say(self.implementations)}"]
        if not self.divergences:
            return "\n".join([*lines, f"whole == chunks == steps == apart in {len(self.compared)} modules and the whole model"])
        lines.append(f"first module that differs: {self.divergences[0]}")
        lines += [f"then {divergence}" for divergence in self.divergences[1:]]
        return "\n".join(lines)


def parity(model: str | nn.Module | Subject, length: int = 13) -> Parity:
    """Compare whole, chunks, steps and documents apart: laws 1 to 4 on the whole model, then every causal mixer inside by itself.

    A module is given the inputs that it receives in a whole run of the model, so an error further down does not blame those above.
    """
    subject = model if isinstance(model, Subject) else model_subject(model)
    modes, refusals = subject.modes()
    found = Parity(subject.name, Report(subject.name))
    for law in (law_chunks, law_apart, law_causal, law_gradients):
        law(subject, found.laws, [modes[0], modes[-1]], refusals)  # the reference, and what runs by default
    root = subject.at(torch.float64)
    layers = {name: child for name, child in root.named_modules() if name and isinstance(child, CausalMixer)}
    x = subject.inputs(2, length, torch.float64)
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def keep(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            seen.setdefault(name, arguments[0])

        return keep

    hooks = [child.register_forward_pre_hook(watch(name)) for name, child in layers.items()]
    with torch.no_grad():
        subject.call(root, x, None, None)
    for hook in hooks:
        hook.remove()
    with torch.no_grad(), recording() as ran:  # what runs by default is what runs in float32
        subject.call(subject.at(torch.float32), subject.inputs(2, length, torch.float32), None, None)
    found.implementations = ran
    for name in seen:  # in the order in which they ran
        layer = Subject(name, subject.module.get_submodule(name), width=seen[name].shape[-1])
        found.compared.append(name)
        for path in ("chunks", "steps", "apart"):
            divergence = _compare(layer, seen[name], path)
            if divergence is not None:
                found.divergences.append(divergence)
    if found.laws.failed and not found.divergences:
        for path in ("chunks", "steps", "apart") if subject.causal else ():
            divergence = _compare(subject, x, path)
            if divergence is not None:
                found.divergences.append(divergence)
    return found


def _compare(layer: Subject, x: Tensor, path: str) -> Divergence | None:
    """Whole against one other path, in float32 and float64; None where they agree."""
    errors: dict[str, float] = {}
    fields: tuple[str, ...] = ()
    first: int | None = None
    implementations: dict[str, dict[str, str]] = {}
    for dtype in (torch.float64, torch.float32):
        module = layer.at(dtype)
        own = x.to(dtype) if x.is_floating_point() else x
        line = _line(x.shape[0], x.shape[1]) if path == "apart" else None
        with torch.no_grad():
            with recording() as ran:
                y, last = whole(layer, module)(own, line, None)
            implementations["whole"] = dict(ran)
            with recording() as ran:
                other, other_last = _other(layer, module, path, own, line)
            implementations[path] = dict(ran)
        wrong = ~((y - other).abs() <= TOLERANCE[dtype] * max(float(y.abs().max()), 0.1))
        differing = tuple(
            name for name, field in state_fields(last).items() if not _close(name, state_fields(other_last)[name], field, dtype)
        )
        errors[str(dtype).removeprefix("torch.")] = float((y - other).abs().max()) / max(float(y.abs().max()), 0.1)
        if bool(wrong.any()) or differing:
            fields = fields or differing
            if first is None and bool(wrong.any()):
                first = int(wrong.flatten(2).any(2).any(0).nonzero()[0])
    if first is None and not fields:
        return None
    return Divergence(layer.name, path, first, errors, fields, implementations)


def _other(layer: Subject, module: nn.Module, path: str, x: Tensor, line: Timeline | None) -> tuple[Tensor, State]:
    if path == "chunks":
        third = x.shape[1] // 3
        return chunks(layer, module, (third, 1, x.shape[1] - third - 1))(x, None, None)
    if path == "steps":
        return steps(layer, module)(x, None, None)
    return apart(layer, module)(x, line, None)


def _line(batch: int, length: int) -> Timeline:
    """Resets and holes, for law 2."""
    generator = torch.Generator().manual_seed(4)
    reset = torch.rand(batch, length, generator=generator) < 0.25
    return Timeline(reset, torch.rand(batch, length, generator=generator) < 0.7)


def _close(name: str, got: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    try:
        expect_close(name, got, expected, TOLERANCE[dtype])
    except AssertionError:
        return False
    return True


def _say(ran: dict[str, str]) -> str:
    return ", ".join(f"{op}: {name}" for op, name in ran.items()) or "no dispatched op"
