"""Law 8: what a layer is to the machinery around it: repeatable, finite, compiled, exported, copied, saved, converted."""

from __future__ import annotations

import copy
import dataclasses
import io
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, nn

from statescan import state as states
from statescan.ops import dispatch
from statescan.parameters import Dynamic, parameter_groups
from statescan.state import State
from statescan.testing.compare import LawError, expect_close, expect_equal, expect_identical, run, state_fields
from statescan.testing.oracles import whole
from statescan.testing.report import Report
from statescan.testing.subject import Mode, Refusal, Subject, full_timeline
from statescan.timeline import Timeline

BATCH, LENGTHS = 6, (11, 14, 19)
"""Sizes that no layer here has: the compiler takes two equal sizes for one symbol, and would tie the length to a width."""


def law_runtime(subject: Subject, report: Report, modes: Sequence[Mode], refusals: Sequence[Refusal] = ()) -> None:
    """Law 8, but for distribution over processes (:func:`statescan.testing.distributed.law_distributed`)."""
    for mode in modes:
        with report.comparing(8, f"runs repeat; {mode}"), mode.active():
            expect_repeatable(subject, mode)
        if mode.name == "native":
            with report.comparing(8, f"kernels at 1, 2 and 3 threads; {mode}"):
                expect_threads(subject, mode)
        with report.comparing(8, f"nothing is changed in place; {mode}"), mode.active():
            expect_untouched(subject, mode)
        if mode.gradients:
            with report.comparing(8, f"finite in bfloat16 under extreme inputs; {mode.name}"):
                expect_finite(subject, mode)
    timed = _graphs_take_timeline(subject, report)
    with report.comparing(8, "torch.compile, three lengths"):
        expect_compiles(subject, timed)
    if subject.folds_length:
        report.skip(8, "torch.export with a dynamic length", "the layer lays positions out in rows (folds_length)")
    with report.comparing(8, "torch.export, dynamic batch and length"):
        expect_exports(subject, timed)
    with report.comparing(8, "deepcopy and state_dict"):
        expect_copies(subject)
    if subject.causal:
        with report.comparing(8, "a state saved and loaded"):
            expect_saves_state(subject)
    with report.comparing(8, "dynamics stay float32 and undecayed"):
        expect_precision(subject)


def _graphs_take_timeline(subject: Subject, report: Report) -> bool:
    """Whether resets and masks can be inputs of a compiled or exported graph."""
    if subject.timed and not subject.gathers_documents:
        return True
    reason = "the layer gathers documents by their lengths (gathers_documents)" if subject.timed else "the model takes no timeline"
    report.skip(8, "torch.compile and torch.export with resets and holes", reason)
    return False


def expect_repeatable(subject: Subject, mode: Mode) -> None:
    """The same call twice gives the same bits, gradients included."""
    module = subject.at(mode.dtype)
    x = subject.inputs(3, 11, mode.dtype)
    first, second = (
        run(whole(subject, module), module, x, full_timeline(subject, 3, 11), gradients=mode.gradients).tensors for _ in range(2)
    )
    for name, tensor in first.items():
        expect_identical(name, second[name], tensor)


def expect_threads(subject: Subject, mode: Mode) -> None:
    """What a forced implementation computed in a run, it computes again, bit by bit, at 1, 2 and 3 threads, backwards too.

    The ops alone: torch's own elementwise functions round differently at the seams between threads. And of those the ones that are
    computed here: not an op that declares ``torch_products``.
    """
    module = subject.at(mode.dtype)
    calls: list[tuple[str, dict[str, Any]]] = []
    with mode.active(), capturing(mode.forced, calls), torch.no_grad():
        subject.call(module, subject.inputs(3, 70, mode.dtype), full_timeline(subject, 3, 70), None)
    threads = torch.get_num_threads()
    try:
        for op, arguments in calls:
            if dispatch.ops[op].torch_products:
                continue
            results = []
            for n in (1, 2, 3):
                torch.set_num_threads(n)
                results.append(_replay(dispatch.ops[op].implementations[mode.forced[op]].run, arguments))
                for i, (tensor, first) in enumerate(zip(results[-1], results[0], strict=True)):
                    expect_identical(f"result {i} of {op} at {n} threads", tensor, first)
    finally:
        torch.set_num_threads(threads)


@contextmanager
def capturing(forced: Mapping[str, str], calls: list[tuple[str, dict[str, Any]]]) -> Iterator[None]:
    """Append (op, arguments) of every call of the forced implementations."""
    originals = {op: dispatch.ops[op].implementations[name] for op, name in forced.items()}

    def keep(op: str) -> Callable[..., Any]:
        def run(**arguments: Any) -> Any:
            calls.append((op, arguments))
            return originals[op].run(**arguments)

        return run

    try:
        for op, name in forced.items():
            dispatch.ops[op].implementations[name] = dataclasses.replace(originals[op], run=keep(op))
        yield
    finally:
        for op, name in forced.items():
            dispatch.ops[op].implementations[name] = originals[op]


def _replay(function: Callable[..., Any], arguments: dict[str, Any]) -> list[Tensor]:
    """Results and gradients of one call of an op's implementation."""
    leaves = {
        name: value.detach().clone().requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }
    with torch.enable_grad():
        outputs = [out for out in function(**leaves) if isinstance(out, Tensor)]
        total = sum(out.double().pow(2).sum() for out in outputs if out.requires_grad and not out.is_complex())
    sources = [leaf for leaf in leaves.values() if isinstance(leaf, Tensor) and leaf.requires_grad]
    found = torch.autograd.grad(total, sources, allow_unused=True) if isinstance(total, Tensor) else ()
    return [*(out.detach() for out in outputs), *(gradient for gradient in found if gradient is not None)]


def expect_untouched(subject: Subject, mode: Mode) -> None:
    """Input, incoming state, timeline and parameters are what they were; the outputs do not share their memory."""
    module = subject.at(mode.dtype)
    x, line = subject.inputs(2, 6, mode.dtype), full_timeline(subject, 2, 6)
    given = {"input": x}
    if line is not None:
        given |= {f"timeline.{k}": v for k, v in line._asdict().items() if isinstance(v, Tensor)}
    state = None
    if subject.causal:
        state = subject.warm_state(module, 2)
        given |= {f"incoming {name}": leaf for name, leaf in state_fields(state).items()}
    given |= dict(module.named_buffers()) | dict(module.named_parameters())
    before = {name: tensor.detach().clone() for name, tensor in given.items()}
    with torch.no_grad():
        results = [subject.call(module, x, line, state)]
        if subject.causal:
            results.append(module.step(x[:, 0], state, line.at(0) if line else None))  # type: ignore[operator]
    for name, tensor in given.items():
        expect_identical(name, tensor.detach(), before[name])
    storages = {tensor.untyped_storage().data_ptr(): name for name, tensor in given.items() if tensor.numel()}
    for y, last in results:
        for name, tensor in {"output": y, **state_fields(last, "outgoing state")}.items():
            if tensor.numel() and tensor.untyped_storage().data_ptr() in storages:
                raise LawError(f"{name} shares memory with {storages[tensor.untyped_storage().data_ptr()]}")


def expect_finite(subject: Subject, mode: Mode) -> None:
    module = subject.fresh(torch.bfloat16)
    if subject.vocab_size is None:
        zero = subject.inputs(1, 9, torch.bfloat16) * 0
        cases = {"zeros": zero, "large": subject.inputs(1, 9, torch.bfloat16) * 1e4, "constant": zero + 30, "tiny": zero + 1e-30}
    else:
        cases = {"one token": subject.inputs(1, 9) * 0}
    lines: dict[str, Timeline | None] = {"": None}
    if subject.has_time:
        lines |= {", no time": Timeline(interval=torch.zeros(1, 9)), ", ages": Timeline(interval=torch.full((1, 9), 1e6))}
    for case, x in cases.items():
        for suffix, line in lines.items():
            with Mode(mode.name, torch.bfloat16, mode.forced).active():
                got = run(whole(subject, module), module, x, line)
            for name, tensor in got.tensors.items():
                if not bool(tensor.isfinite().all()):
                    raise LawError(f"{name} is not finite for {case} inputs{suffix}")


class _Call(nn.Module):
    """The contract as a flat function, for the compiler and the exporter."""

    def __init__(self, subject: Subject, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.causal = subject.causal
        self.timed = subject.timed

    def forward(
        self, x: Tensor, reset: Tensor | None = None, mask: Tensor | None = None, state: State | None = None
    ) -> tuple[Tensor, State | None]:
        line = None if reset is None and mask is None else Timeline(reset, mask)
        if self.causal:
            return self.module(x, line, state=state, return_state=True)
        return (self.module(x, line) if self.timed else self.module(x)), None


def _arguments(subject: Subject, module: nn.Module, batch: int, length: int, timed: bool) -> tuple[Any, ...]:
    """(x, reset, mask, state)."""
    line = full_timeline(subject, batch, length) if timed else None
    state = subject.warm_state(module, batch) if subject.causal else None
    return subject.inputs(batch, length), line and line.reset, line and line.mask, state


def expect_compiles(subject: Subject, timed: bool = True) -> None:
    """One graph, traced once: the lengths share it, with a state, forward and backward. Images keep one size."""
    module = subject.fresh()
    torch._dynamo.reset()
    # A layer's floats are constants; as symbols, which dynamic shapes would make them, they are traced twice before they become constants.
    with torch._dynamo.config.patch(error_on_recompile=True, specialize_float=True):
        compiled = torch.compile(_Call(subject, module), backend="aot_eager", fullgraph=True, dynamic=subject.timed)
        for length in LENGTHS:
            x, reset, mask, state = _arguments(subject, module, BATCH, length, timed)
            line = Timeline(reset, mask) if timed else None
            expected = run(whole(subject, module), module, x, line, state)
            got = run(lambda x, line, state: compiled(x, line and line.reset, line and line.mask, state), module, x, line, state)
            try:
                expect_equal(got, expected, subject.tolerance[torch.float32])
            except LawError as error:
                raise LawError(f"L={length}: {error}") from error
    torch._dynamo.reset()


def expect_exports(subject: Subject, timed: bool = True) -> None:
    """The exported program, written and read back, equals the module at another batch and, where it can, length, the state going in and
    out."""
    module = subject.fresh()
    batch, length = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("length", min=2, max=4096)
    given = _arguments(subject, module, BATCH, LENGTHS[0], timed)
    dynamic = subject.timed and not subject.folds_length
    shape = {0: batch, 1: length} if dynamic else {0: batch}
    field = shape if timed else None
    rows = None if given[3] is None else states.map_tensors(lambda _: {0: batch}, given[3])  # type: ignore[arg-type,return-value]
    with torch.no_grad():
        program = torch.export.export(
            _Call(subject, module), given, dynamic_shapes={"x": shape, "reset": field, "mask": field, "state": rows}, strict=False
        )
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        exported = torch.export.load(file).module()
        for b, n in zip((1, 2), LENGTHS[1:] if dynamic else LENGTHS[:1] * 2, strict=True):
            arguments = _arguments(subject, module, b, n, timed)
            y, last = exported(*arguments)
            wanted, wanted_last = _Call(subject, module)(*arguments)
            expect_close("output", y, wanted, subject.tolerance[torch.float32])
            for (name, got), expected in zip(state_fields(last).items(), state_fields(wanted_last).values(), strict=True):
                expect_close(name, got, expected, subject.tolerance[torch.float32])


def expect_copies(subject: Subject) -> None:
    module = subject.fresh()
    x = subject.inputs(2, 7)
    expected = run(whole(subject, module), module, x)
    scrambled = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in scrambled.parameters():
            parameter.add_(1.0)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    scrambled.load_state_dict(torch.load(file, weights_only=True), strict=True)
    for other in (copy.deepcopy(module), scrambled):
        got = run(whole(subject, other), other, x)
        for name, tensor in expected.tensors.items():
            expect_identical(name, got.tensors[name], tensor)


def expect_saves_state(subject: Subject) -> None:
    module = subject.module
    state = subject.warm_state(module, 2)
    x = subject.inputs(2, 4)
    with tempfile.TemporaryDirectory() as folder:
        file = FilePath(folder) / "state.safetensors"
        states.save(state, file)
        loaded = states.load(file)
    swapped = states.select(loaded, [1, 0])
    with torch.no_grad():
        y = subject.call(module, x, None, state)[0]
        expect_identical("output after loading the state", subject.call(module, x, None, loaded)[0], y)
        crossed = subject.call(module, x.flip(0), None, swapped)[0].flip(0)
        expect_close("output with the rows swapped", crossed, y, subject.tolerance[torch.float32])


def expect_precision(subject: Subject) -> None:
    """``.to(bfloat16)`` moves everything but the dynamics; what the optimiser is handed has every parameter once."""
    module = subject.fresh(torch.bfloat16)
    kept: set[int] = set()
    for path, child in module.named_modules():
        if not isinstance(child, Dynamic):
            continue
        original = subject.module.get_submodule(path)
        for name in child.dynamics:
            tensor = getattr(child, name)
            if tensor is None:
                continue
            kept.add(id(tensor))
            if tensor.dtype != torch.float32 or not torch.equal(tensor, getattr(original, name)):
                raise LawError(f"{path + '.' if path else ''}{name} is {tensor.dtype} after .to(bfloat16): dynamics stay float32")
    for name, parameter in module.named_parameters():
        if id(parameter) not in kept and parameter.dtype != torch.bfloat16:
            raise LawError(f"{name} is {parameter.dtype} after .to(bfloat16), and is not declared in `dynamics`")
    groups = parameter_groups(module)
    handed = [id(p) for group in groups for p in group["params"]]
    if sorted(handed) != sorted(id(p) for p in module.parameters() if p.requires_grad):
        raise LawError("the parameter groups do not hold every parameter exactly once")
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    if decayed & kept:
        raise LawError("a dynamics parameter receives weight decay")
