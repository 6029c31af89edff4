"""Run the benchmarks and write Markdown, JSON and plots to benchmarks/results/: `make bench`, `make bench-quick`, or

``python -m benchmarks.run --only models.mamba-130m.float32 ops`` (a section's name, or the beginning of one; ``--list`` prints them).

Each section's result is written when it is finished, so that an interrupted run keeps what it has measured.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from benchmarks import layers, long, models, ops, report
from benchmarks.limits import Machine
from benchmarks.models import Model, Options, prepared
from benchmarks.timing import machine

Rows = list[dict[str, Any]]


class Section(NamedTuple):
    """A table of the report, and about how many seconds it takes."""

    name: str
    title: str
    seconds: float
    run: Callable[[], Rows]


class Prepared:
    """The model of the current sections: made when the first of them runs, given up when another model's turn comes."""

    def __init__(self, options: Options, limits: Callable[[], Machine]) -> None:
        self.options, self.limits = options, limits
        self.name, self.context, self.model = "", None, None

    def get(self, name: str) -> Model:
        """The model's folder."""
        if self.name != name:
            self.close()
            self.name, self.context = name, prepared(name, self.options, self.limits())
            self.model = self.context.__enter__()
        assert self.model is not None
        return self.model

    def close(self) -> None:
        """Remove the folder."""
        if self.context is not None:
            self.context.__exit__(None, None, None)
        self.name, self.context = "", None


def sections(options: Options, ready: Prepared) -> Iterator[Section]:
    """Everything there is, in the order in which it runs."""
    names = ("mamba-130m",) if options.quick else ("mamba-130m", "mamba2-130m", "mamba-370m")
    layers_note = ", 4 layers" if options.quick else ""
    for name in names:
        cost = 3.0 if name == "mamba-370m" else 1.0
        for precision, seconds in (("float32", 90), ("bfloat16", 80), ("int8", 25), ("int4", 25)):

            def infer(name: str = name, precision: str = precision) -> Rows:
                return models.inference(ready.get(name), precision)

            title = f"{name}{layers_note}, {precision}: prefill and decode"
            yield Section(f"models.{name}.{precision}", title, seconds * cost, infer)
        yield Section(
            f"models.{name}.start", f"{name}{layers_note}: first token", 40 * cost, lambda name=name: models.first_token(ready.get(name), "float32")
        )
        yield Section(f"models.{name}.training", f"{name}{layers_note}: training", 180, lambda name=name: models.training(ready.get(name)))
    yield Section("layers", "One layer, d=256, B=1, against the length", 60, lambda: layers.run(options))
    for op in ops.NAMES:
        yield Section(f"ops.{op}", f"{op}", 40, lambda op=op: ops.run(op, options.quick, ready.limits()))
    yield Section("long.scan", "A long sequence in chunks of 4096", 40, lambda: long.scan(options))
    yield Section("long.decode", "Decoding for a long time", 60, lambda: long.decode(options))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two minutes: one model with four layers, shorter lengths, no environment is built")
    parser.add_argument("--only", nargs="+", default=[""], metavar="SECTION", help="sections, or beginnings of their names")
    parser.add_argument("--list", action="store_true", help="print the sections' names")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", help="name of the files in benchmarks/results (default: full, quick or partial)")
    parser.add_argument(
        "--llama-python", default=os.environ.get("STATESCAN_LLAMA_PYTHON"), help="an interpreter that has llama-cpp-python and gguf"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    progress = Progress()
    options = Options(arguments.threads, arguments.llama_python, not arguments.quick, arguments.quick, progress.say)
    limits = Lazily(lambda: Machine(arguments.threads))
    ready = Prepared(options, limits)
    chosen = [s for s in sections(options, ready) if any(s.name.startswith(only) for only in arguments.only)]
    if arguments.list:
        print("\n".join(section.name for section in chosen))
        return
    if not chosen:
        parser.error(f"no section begins with {' or '.join(arguments.only)}: --list prints their names")
    name = arguments.out or ("partial" if arguments.only != [""] else "quick" if arguments.quick else "full")
    results: dict[str, Any] = {"machine": machine(arguments.threads), "started": time.strftime("%Y-%m-%d %H:%M"), "sections": {}}
    try:
        for section in progress.over(chosen):
            results["sections"][section.name] = {"title": section.title, "rows": section.run()}
            results["rates"] = limits.value.rates() if limits.value is not None else {}
            results["minutes"] = progress.minutes()
            report.write(name, results)
    finally:
        ready.close()
    print(report.summary(results))
    print(f"written: {report.FOLDER / name}.md, .json and plots", file=sys.stderr)


class Lazily:
    """A value that is made when it is first asked for."""

    def __init__(self, make: Callable[[], Machine]) -> None:
        self.make, self.value = make, None

    def __call__(self) -> Machine:
        if self.value is None:
            self.value = self.make()
        return self.value


class Progress:
    """One line a section on standard error, with the time that is left: the guesses, scaled by how wrong they have been so far."""

    def __init__(self) -> None:
        self.began = time.perf_counter()

    def minutes(self) -> float:
        """Since the beginning."""
        return round((time.perf_counter() - self.began) / 60, 1)

    def say(self, text: str) -> None:
        """A line."""
        print(text, file=sys.stderr, flush=True)

    def over(self, chosen: list[Section]) -> Iterator[Section]:
        """The sections, announced."""
        done = 0.0
        total = sum(section.seconds for section in chosen)
        for i, section in enumerate(chosen):
            pace = (time.perf_counter() - self.began) / done if done else 1.0
            left = (total - done) * pace / 60
            self.say(f"[{i + 1}/{len(chosen)}] {section.name}: {self.minutes():.1f} min gone, about {left:.0f} min left")
            yield section
            done += section.seconds


if __name__ == "__main__":
    main()
