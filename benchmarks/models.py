"""Model level: prefill, decode, the first token and a training step of the published shapes, everyone on the same random weights."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import statescan as ss
from benchmarks.limits import Machine, Work, now, work
from benchmarks.peers import llama
from benchmarks.peers.client import Absent, Participant
from benchmarks.timing import Timing, interleaved
from benchmarks.tokens import tokens

Row = dict[str, Any]
Start = Callable[[], Participant]

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05, "int8": 0.1, "int4": 0.6}
"""Largest distance from our float32 logits, in the 2-norm and relative to them; another model's would be at about 1.4."""
CHECKED = (37, 3)
"""The check compares the logits after a prompt of 37 tokens and after each of three steps."""
TRAINED = {"mamba2-130m": 512}
"""Positions of the training step, otherwise 256: transformers' time for a Mamba grows with their square, to five minutes for mamba-370m."""
FIRST = 64
"""Tokens of the prompt whose answer's first token is waited for."""
LIMIT = "the machine's limit"
"""Who takes the least time that the rates of the moment allow."""
NO_QUANTISATION = "absent: eager transformers has no weight-only precision of its own on a CPU"
ONE_MODEL = "absent: takes minutes a figure; measured with mamba-130m"


class Options(NamedTuple):
    """What the command line says."""

    threads: int
    llama_python: str | None
    build: bool
    quick: bool
    say: Callable[[str], None]


class Model:
    """A published shape with random weights, in a folder that every participant reads, and what is known about it."""

    def __init__(self, name: str, options: Options, machine: Machine, folder: Path) -> None:
        self.name, self.options, self.machine, self.folder = name, options, machine, folder
        self.trained = 64 if options.quick else TRAINED.get(name, 256)
        torch.manual_seed(0)
        model = self.build().eval()
        self.layers = len(model.backbone.layers)
        self.work: Work = work(model)
        self.parameters = sum(p.numel() for p in model.parameters())
        self.width, self.vocabulary = model.d_model, model.vocab_size
        self.save(model)
        prompt, steps = CHECKED
        ids = torch.from_numpy(tokens(1, prompt + steps, model.vocab_size))
        with torch.inference_mode(), ss.implementation("portable"):
            self.expected = model(ids)[0, prompt - 1 :].numpy()

    def build(self) -> Any:
        """Fresh weights."""
        return ss.create_model(self.name, layers="M*4") if self.options.quick else ss.create_model(self.name)

    def save(self, model: Any) -> None:
        """Into the folder, for everyone."""
        ss.export_pretrained(model, self.folder)
        llama.export(model, self.folder)

    def check(self, participant: Participant, precision: str) -> float:
        """The participant's distance from the expected logits; Absent if it is too far."""
        file = self.folder / "logits.npy"
        participant.ask("logits", file=str(file), length=CHECKED[0], steps=CHECKED[1])
        error = float(np.linalg.norm(np.load(file) - self.expected) / np.linalg.norm(self.expected))
        if not error <= TOLERANCE[precision]:
            raise Absent(f"no figures: its logits lie {error:.1e} from ours, more than {TOLERANCE[precision]:.0e}")
        return error

    def participants(self, precision: str, training: bool = False) -> dict[str, Start | str]:
        """Name -> how to start it, or why it is absent."""
        threads = self.options.threads
        start = partial(Participant, threads=threads)
        everyone: dict[str, Start | str] = {"statescan": partial(start, "statescan_peer", self.folder, precision, threads)}
        quantised = precision in ("int8", "int4")
        everyone["transformers"] = partial(start, "transformers_peer", self.folder, precision, threads)
        if quantised:
            everyone["transformers"] = NO_QUANTISATION
        elif precision == "bfloat16" and self.name != "mamba-130m":
            everyone["transformers"] = ONE_MODEL
        if training:
            everyone["llama.cpp"] = "absent: does not train"
            everyone["transformers, mambapy's scan"] = partial(start, "transformers_peer", self.folder, precision, threads, "mambapy")
            if self.name != "mamba-130m":
                everyone["transformers, mambapy's scan"] = (
                    ONE_MODEL if self.name == "mamba-370m" else "absent: transformers has it for Mamba only"
                )
        else:
            everyone["llama.cpp"] = self._llama(precision)
        if precision == "float32" and self.name == "mamba-130m" and not self.options.quick:
            sizes = (self.width, self.layers, self.vocabulary, self.parameters)
            everyone["transformer, equal parameters"] = partial(start, "baselines", "attention", *sizes, threads)
            everyone["LSTM, equal width and depth"] = partial(start, "baselines", "lstm", *sizes, threads)
        return everyone

    def _llama(self, precision: str) -> Start | str:
        try:
            python = llama.environment(self.options.llama_python, self.options.build, self.options.say)
        except Absent as reason:
            return f"absent: {reason}"
        return partial(llama.start, python, self.folder, precision, self.options.threads)


class Field:
    """The participants of one comparison, started and checked; ``absent`` says why the others are missing."""

    def __init__(self, model: Model, precision: str, training: bool = False) -> None:
        self.running: dict[str, Participant] = {}
        self.absent: dict[str, str] = {}
        self.errors: dict[str, float] = {}
        self.precision, self.repeats = precision, 3 if model.options.quick else 5
        self.machine = model.machine
        for name, start in model.participants(precision, training).items():
            if isinstance(start, str):
                self.absent[name] = start
                continue
            try:
                self.running[name] = start()
                if name in ("statescan", "transformers", "transformers, mambapy's scan", "llama.cpp"):
                    self.errors[name] = model.check(self.running[name], precision)
            except Absent as reason:
                if name == "statescan":
                    self.close()
                    raise RuntimeError(f"{model.name}, {precision}: statescan: {reason}") from None
                self.absent[name] = f"absent: {reason}"
                if name in self.running:
                    self.running.pop(name).close()

    def close(self) -> None:
        """End every process."""
        for participant in self.running.values():
            participant.close()

    def measure(self, what: str, count: int, limit: Callable[[], float], call: Callable[[Participant], float]) -> list[Row]:
        """A row for everyone: ``count`` tokens a call. The limit takes its turns with the others: a machine's rates change in minutes."""

        def least() -> float:
            self.machine.measure(now)
            return limit()

        calls = {name: partial(call, running) for name, running in self.running.items()}
        timings = interleaved({**calls, LIMIT: least}, self.repeats)
        timings |= {name: Absent(reason) for name, reason in self.absent.items()}
        return rows(what, self.precision, count, timings, self.errors)


def rows(what: str, precision: str, count: int, timings: dict[str, Timing | Absent], errors: dict[str, float]) -> list[Row]:
    """Tokens a second, their spread, how many times as fast as the participant ours is, and the share of the limit."""
    ours = timings["statescan"]
    if isinstance(ours, Absent):
        raise RuntimeError(f"{what}, {precision}: statescan: {ours}")
    limit = timings[LIMIT]
    assert isinstance(limit, Timing)
    table = []
    for name, timing in timings.items():
        row: Row = {"figure": what, "precision": precision, "who": name}
        if isinstance(timing, Absent):
            row["note"] = str(timing)
        else:
            row |= {
                "tokens/s": count / timing.median,
                "low": count / timing.high,
                "high": count / timing.low,
                "repeats": timing.repeats,
                "statescan is faster by": timing.median / ours.median,
            }
            if name in errors:
                row |= {"of the limit": limit.median / timing.median, "error": errors[name]}
        table.append(row)
    return table


@contextlib.contextmanager
def prepared(kind: type[Model], name: str, options: Options, machine: Machine) -> Iterator[Model]:
    """The model's folder, for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="statescan-benchmark-") as folder:
        yield kind(name, options, machine, Path(folder))


def inference(get: Callable[[], Model], precision: str) -> list[Row]:
    """Prefill of 512 tokens, decode of one and of eight sequences."""
    model = get()
    field = Field(model, precision)
    try:
        info = field.running["statescan"].ask("info")
        body, head = info["bytes a weight"], info["bytes a weight of the head"]
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32

        def limit(rows: int, sequences: int, calls: int = 1) -> float:
            return calls * model.machine.forward(model.work, rows, sequences, body, head, dtype, sequences)

        table = field.measure("prefill of 512 tokens", 512, partial(limit, 512, 1), lambda p: p.ask("prefill", length=512))
        for batch, steps in ((1, 16), (8, 8)):
            least = partial(limit, batch, batch, steps)
            table += field.measure(f"decode, B={batch}", batch * steps, least, partial(_decode, batch, steps))
        sizes = {name: participant.ask("info")["bytes"] / 1e6 for name, participant in field.running.items()}
    finally:
        field.close()
    for row in table:
        if row["who"] in sizes:
            row["weights, MB"] = sizes[row["who"]]
    return table


def _decode(batch: int, steps: int, participant: Participant) -> float:
    return float(participant.ask("decode", batch=batch, steps=steps))


def training(get: Callable[[], Model]) -> list[Row]:
    """Forward and backward of one sequence, in processes that have done nothing else but the check."""
    model = get()
    length = model.trained
    field = Field(model, "float32", training=True)
    try:
        for participant in field.running.values():
            participant.ask("train", length=8)
            participant.ask("peak", reset=True)
        table = field.measure(
            f"training step, L={length}",
            length,
            lambda: model.machine.training(model.work, length),
            lambda p: p.ask("train", length=length),
        )
        peaks = {name: participant.ask("peak") for name, participant in field.running.items()}
    finally:
        field.close()
    for row in table:
        if row["who"] in peaks and "tokens/s" in row:
            row["peak memory, MiB"] = peaks[row["who"]]
    return table


def first_token(get: Callable[[], Model], precision: str = "float32") -> list[Row]:
    """From the start of a process to the logits after a short prompt: import, load, prefill. The file cache is warm."""
    model = get()
    timings: dict[str, Timing | Absent] = {}
    calls: dict[str, Callable[[], float]] = {}
    for name, start in model.participants(precision).items():
        if isinstance(start, str):
            timings[name] = Absent(start)
        elif name in ("statescan", "transformers", "llama.cpp"):
            calls[name] = partial(_first, start)
    if "llama.cpp" in calls:
        with contextlib.suppress(Absent):
            calls["llama.cpp"]()  # the very first one writes the file
    timings = interleaved(calls) | timings
    table = []
    for name, timing in timings.items():
        row: Row = {"figure": f"process start to first token, prompt of {FIRST}", "precision": precision, "who": name}
        if isinstance(timing, Absent):
            row["note"] = str(timing)
        else:
            row |= {"seconds": timing.median, "low": timing.low, "high": timing.high, "repeats": timing.repeats}
        table.append(row)
    return table


def _first(start: Start) -> float:
    with start() as participant:
        participant.ask("prefill", length=FIRST)
        return time.perf_counter() - participant.started
