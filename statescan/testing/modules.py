"""Law 6: projections are called as modules, on every path, so that adapters, quantisers, hooks and checkpointing see every call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from statescan.protocols import Mixer
from statescan.testing.compare import LawError, Outcome, Path, expect_equal, expect_identical, run
from statescan.testing.oracles import chunks, steps, whole
from statescan.testing.report import Report
from statescan.testing.subject import Mode, Refusal, Subject, full_timeline
from statescan.timeline import Timeline


def is_projection(module: nn.Module) -> bool:
    """A leaf with a weight matrix or filter: Linear, convolution, grouped Linear, embedding. A mixer without children is none."""
    leaf = next(module.children(), None) is None and not isinstance(module, Mixer)
    return leaf and any(parameter.ndim > 1 for parameter in module.parameters())


class Perturbed(nn.Module):
    """What an adapter is to a layer: it calls the original, changes the result, and shows the original's attributes."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = self.base(*args, **kwargs)
        return (self._change(out[0]), *out[1:]) if isinstance(out, tuple) else self._change(out)

    @staticmethod
    def _change(y: Tensor) -> Tensor:
        # Neither a multiple nor a shift alone: a norm or a softmax behind the layer could undo either.
        return y * 1.25 + 0.2 * torch.sin(3.0 * y) + 0.125

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)


def law_modules(subject: Subject, report: Report, modes: Sequence[Mode], refusals: Sequence[Refusal] = ()) -> None:
    """Replacing any projection changes every path, and alike; hooks on every block fire; activation checkpointing changes no value."""
    names = [name for name, child in subject.module.named_modules() if name and is_projection(child)]
    if not names:
        report.skip(6, "replaced projections", "the layer has no projection")
    for name in names:
        for mode in modes:
            with report.comparing(6, f"{name} replaced; {mode}"), mode.active():
                _expect_replaced(subject, name, mode)
    for mode in modes:
        with report.comparing(6, f"hooks; {mode}"), mode.active():
            _expect_hooks(subject, mode)
        if mode.gradients:
            with report.comparing(6, f"activation checkpointing; {mode}"), mode.active():
                _expect_checkpointing(subject, mode)


def _paths(subject: Subject, module: nn.Module) -> dict[str, Path]:
    found = {"forward": whole(subject, module)}
    if subject.causal:
        found |= {"chunks": chunks(subject, module, (2, 3, 2)), "steps": steps(subject, module)}
    return found


def _expect_replaced(subject: Subject, name: str, mode: Mode) -> None:
    plain, module = subject.at(mode.dtype), subject.fresh(mode.dtype)
    module.set_submodule(name, Perturbed(module.get_submodule(name)))
    x = subject.inputs(2, 7, mode.dtype)
    expected: Outcome | None = None
    for timeline in (None, full_timeline(subject, 2, 7)) if subject.timed else (None,):
        expected = None
        for (path_name, path), before in zip(_paths(subject, module).items(), _paths(subject, plain).values(), strict=True):
            got = run(path, module, x, timeline, gradients=False)
            if torch.equal(got.y, run(before, plain, x, timeline, gradients=False).y):  # runs repeat bit by bit
                raise LawError(f"{path_name}: the output does not change, so this path reads {name}.weight and never calls the module")
            if expected is not None:
                try:
                    expect_equal(got, expected, subject.tolerance[mode.dtype])
                except LawError as error:
                    raise LawError(f"with {name} replaced, {path_name} and forward differ: {error}") from error
            expected = expected or got


def _expect_hooks(subject: Subject, mode: Mode) -> None:
    """Every projection, mixer and block is entered through ``__call__`` by forward and chunks; every projection by some steps too."""
    module = subject.fresh(mode.dtype)
    watched = {n: c for n, c in module.named_modules() if is_projection(c) or isinstance(c, Mixer) or _holds_mixer(c)}
    fired: set[str] = set()
    for name, child in watched.items():
        child.register_forward_hook(lambda *_, name=name: fired.add(name))
    x = subject.inputs(1, 4, mode.dtype)

    def expect(path: str, names: set[str], call: Callable[[], object]) -> None:
        fired.clear()
        with torch.no_grad():
            call()
        if names - fired:
            raise LawError(f"{path}: the forward hooks of {sorted(names - fired)} never fire; parents must call children as modules")

    expect("forward", set(watched), lambda: module(x))
    if subject.causal:
        state = subject.init_state(module, 1)
        expect("scan", set(watched), lambda: module.scan(x, state))  # type: ignore[operator]
        projections = {name for name, child in watched.items() if is_projection(child)}
        expect("step", projections, lambda: steps(subject, module)(x, None, state))


def _holds_mixer(module: nn.Module) -> bool:
    return any(isinstance(child, Mixer) for child in module.children())


def _expect_checkpointing(subject: Subject, mode: Mode) -> None:
    module = subject.at(mode.dtype)
    inner = subject.fresh(mode.dtype)
    for name, child in list(inner.named_modules()):
        if name and isinstance(child, Mixer) and "." not in name.replace(".mixer", ""):
            inner.set_submodule(name, _Checkpointed(child))
    x = subject.inputs(2, 7, mode.dtype)
    timeline = full_timeline(subject, 2, 7)
    state = subject.warm_state(module, 2) if subject.causal else None

    def outside(x: Tensor, line: Timeline | None, state: object) -> tuple[Tensor, object]:
        return checkpoint(whole(subject, module), x, line, state, use_reentrant=False)

    expected = run(whole(subject, module), module, x, timeline, state)
    for got in (run(outside, module, x, timeline, state), run(whole(subject, inner), inner, x, timeline, state)):
        for (name, tensor), value in zip(expected.tensors.items(), got.tensors.values(), strict=True):
            expect_identical(name, value, tensor)


class _Checkpointed(nn.Module):
    """A layer that is recomputed in the backward pass."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(self.inner, *args, use_reentrant=False, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)
