"""Mixers side by side: the same task, the same number of parameters, the same rows in the same order; a table and a plot.

Every model has ``layers`` pairs of blocks, a mixer and a gated MLP, whose width is what makes the counts equal. Floors stand below.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from statescan.data.tasks import Task
from statescan.data.tasks.base import ClassTask
from statescan.files import read_json, write_json, write_text
from statescan.procedures.contestants import LSTM, Contestant, build, layout, line_up
from statescan.procedures.fit import Schedule, take_step
from statescan.procedures.floors import floors
from statescan.procedures.guard import NonFiniteError
from statescan.procedures.interrupt import Interrupted
from statescan.procedures.optim import make_optimizer
from statescan.procedures.pretrain import Denoiser, Denoising, transfer
from statescan.procedures.pretrain import pretrain as denoise
from statescan.registry import lookup
from statescan.spec import Spec

_TRAIN, _TEST = 0, 1
"""First number of the seed of a batch."""
_OPTIONS = (
    "d_model", "layers", "steps", "batch_size", "lr", "warmup", "betas", "weight_decay", "clip", "test_rows", "eval_every", "stop_at",
)  # fmt: skip
"""What decides a score besides the task, the model and the seed."""


@dataclass(frozen=True)
class Score:
    """How one contestant did with one seed."""

    label: str
    seed: int
    parameters: int
    d_ff: int
    steps: int
    """Taken; fewer than asked for if it had ``stop_at`` before."""
    seconds: float
    accuracy: dict[str, float]
    """Test -> share of right answers."""
    curve: list[tuple[int, float]]
    """(step, accuracy on the first test)."""


@dataclass(frozen=True)
class Comparison:
    """All scores, and where the table and the plot are."""

    run: Path
    tests: tuple[str, ...]
    chance: float
    scores: tuple[Score, ...]
    floors: Mapping[str, Mapping[str, float]]
    """What needs no model -> test -> score."""

    def rows(self) -> list[tuple[str, int, dict[str, list[float]]]]:
        """(label, parameters, test -> accuracy of each seed), in the order asked for."""
        labels = dict.fromkeys(score.label for score in self.scores)
        found = []
        for label in labels:
            mine = [score for score in self.scores if score.label == label]
            found.append((label, mine[0].parameters, {test: [s.accuracy[test] for s in mine] for test in self.tests}))
        return found

    def table(self) -> str:
        """Markdown: accuracy in percent, mean and standard deviation over seeds; then the floors."""
        lines = [f"| mixer | parameters | {' | '.join(self.tests)} |", f"|---|--:|{'--:|' * len(self.tests)}"]
        for label, parameters, values in self.rows():
            lines.append(f"| {label} | {parameters:,} | {' | '.join(_percent(values[test]) for test in self.tests)} |")
        for label, by_test in self.floors.items():
            lines.append(f"| {label} | | {' | '.join(_percent([by_test[test]]) for test in self.tests)} |")
        return "\n".join(lines)

    def __str__(self) -> str:
        return f"{self.table()}\n\nchance: {100 * self.chance:.1f} %; table.md, table.json and plot.png in {self.run}"


def compare(
    task: Spec[Any],
    mixers: list[Any],
    run: str = "runs/compare",
    d_model: int = 64,
    layers: int = 2,
    heads: int = 2,
    parameters: int = 0,
    seeds: int = 3,
    first_seed: int = 0,
    steps: int = 2000,
    batch_size: int = 64,
    lr: float = 3e-3,
    warmup: int = 100,
    betas: tuple[float, float] = (0.9, 0.98),
    weight_decay: float = 0.1,
    clip: float = 1.0,
    train_rows: int = 0,
    pretrain_steps: int = 0,
    pretrain: Literal["masked", "causal"] = "masked",
    floor_rows: int = 4096,
    test_rows: int = 512,
    eval_every: int = 200,
    stop_at: float = 1.0,
    threads: int = 1,
    device: str = "cpu",
    quiet: bool = False,
) -> Comparison:
    """Train each mixer on a generated task at equal parameters, for several seeds; print and write a table and a plot.

    What is finished is not run again: the same command, after Ctrl-C or with more mixers or seeds, only does what is missing.

    Args:
        task: mqar, joint-recall, selective-copying, induction-heads, in-context-language, parity, permutation, needle, copy, delay,
            listops, pathfinder, repeat-first, delay-signal, autoregression, fourier-noise or moving-digits.
        mixers: names, mappings {name: ..., arguments}, and lists of these, which take the layers in turn: "Mamba, [Mamba, Attention]".
            LSTM is torch's.
        run: folder for the scores, table.md, table.json and plot.png.
        d_model: width of every model.
        layers: mixers in a model, each with an MLP behind it.
        heads: number of heads of a mixer that has heads and leaves num_heads, head_dim or headdim open; a head is d_model / heads wide.
        parameters: of every model; 0 is what the largest mixer needs with an MLP of width d_model.
        seeds: how many.
        first_seed: the first of them. A seed decides the initial weights and the training rows.
        steps: optimiser steps.
        batch_size: rows a step.
        lr: peak learning rate of AdamW.
        warmup: steps of linear warm-up; a cosine to zero follows.
        betas: of AdamW's averages.
        weight_decay: of matrices and embeddings.
        clip: largest norm of the gradient.
        train_rows: size of the training set of a seed; 0 draws new rows for every step.
        pretrain_steps: of denoising the training set first. Every model is then trained twice, so and from scratch. The task must have
            one class a row.
        pretrain: what is denoised: masked, half of the ids are hidden and asked for; causal, each position asks for the next.
        floor_rows: rows that the floors in the table are fitted to; 0 leaves them out. With train_rows, it is those.
        test_rows: rows of each test, the same for all.
        eval_every: steps between measurements on the tests.
        stop_at: a model that has this accuracy on every test stops; above 1 none does.
        threads: of torch; models so small gain nothing from several.
        device: where to run.
        quiet: say nothing.
    """
    o = SimpleNamespace(**locals())
    _check(o)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _compare(o, quiet=quiet)
    finally:
        torch.set_num_threads(before)


def _compare(o: SimpleNamespace, *, quiet: bool) -> Comparison:
    task: Task = o.task()
    tests = task.tests()
    contestants = line_up(o.mixers, task, o.d_model, o.layers, o.heads, o.parameters)
    if o.pretrain_steps:
        contestants = [replace(c, label=c.label + p * ", pretrained", pretrained=p) for c in contestants for p in (False, True)]
    say = (lambda line: None) if quiet else (lambda line: tqdm.write(line, file=sys.stderr))
    for c in contestants:
        say(f"{c.label}: {c.parameters:,} parameters, MLP of {c.d_ff}")
    folder = Path(o.run)
    source = Source(task, o.train_rows)
    beaten = _floors(folder, source, tests, o)
    todo = [(c, o.first_seed + i) for c in contestants for i in range(o.seeds)]
    scores: list[Score] = []
    for contestant, seed in todo:
        file = folder / "scores" / f"{_key(contestant, seed, o)}.json"
        if file.is_file():
            scores.append(_read(file))
            continue
        try:
            score = _train(contestant, seed, source, tests, o, quiet)
        except KeyboardInterrupt as stop:
            raise Interrupted(f"stopped; {len(scores)} of {len(todo)} are finished in {folder}: the same command does the rest") from stop
        write_json(file, asdict(score))
        scores.append(score)
        results = ", ".join(f"{name} {100 * value:.1f} %" for name, value in score.accuracy.items())
        say(f"{score.label}, seed {seed}: {results} ({score.steps} steps, {score.seconds:.0f} s)")
    found = Comparison(folder, tuple(tests), task.chance, tuple(scores), beaten)
    write_text(folder / "table.md", found.table() + "\n")
    settings = {k: v.to_dict() if isinstance(v, Spec) else v for k, v in vars(o).items() if k not in ("mixers", "run", "quiet")}
    write_json(folder / "table.json", {**settings, "chance": task.chance, "floors": beaten, "scores": [asdict(score) for score in scores]})
    _draw(found, type(task).__name__, say)
    return found


def _key(contestant: Contestant, seed: int, o: SimpleNamespace) -> str:
    """A name for all that decides a score."""
    mixers = [part.to_dict() if isinstance(part, Spec) else LSTM for part in contestant.mixers]
    what = [o.task.to_dict(), mixers, contestant.d_ff, seed, [getattr(o, k) for k in _OPTIONS], o.train_rows]
    if contestant.pretrained:
        what += [o.pretrain_steps, o.pretrain]
    return _digest(what)


def _digest(what: Any) -> str:
    return hashlib.blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=8).hexdigest()


# -- rows and floors ----------------------------------------------------------------------------------------------------------


class Source:
    """Training rows: new ones for every step, or from a set of them, one a seed."""

    def __init__(self, task: Task, rows: int) -> None:
        self.task, self.rows = task, rows
        self._sets: dict[int, Any] = {}

    def all(self, seed: int) -> Any:
        """The training set of a seed."""
        if seed not in self._sets:
            self._sets[seed] = self.task.sample(self.rows, _TRAIN, seed)
        return self._sets[seed]

    def batch(self, size: int, seed: int, step: int) -> Any:
        """The rows of a step."""
        if not self.rows:
            return self.task.sample(size, _TRAIN, seed, step)
        per_epoch = max(1, self.rows // size)
        order = np.random.default_rng((_TRAIN, seed, step // per_epoch)).permutation(self.rows)
        first = step % per_epoch * size
        return self.all(seed).take(torch.from_numpy(order[first : first + size]))


def _floors(folder: Path, source: Source, tests: Mapping[str, Task], o: SimpleNamespace) -> dict[str, dict[str, float]]:
    """Fitted once, to the rows of the first seed."""
    if not o.floor_rows:
        return {}
    key = _digest([o.task.to_dict(), o.train_rows, o.floor_rows, o.first_seed, o.test_rows, o.batch_size])
    file = folder / "scores" / f"floors-{key}.json"
    if not file.is_file():
        train = source.all(o.first_seed) if source.rows else source.task.sample(o.floor_rows, _TRAIN, o.first_seed)
        held = {name: list(_batches(test, o.test_rows, o.batch_size)) for name, test in tests.items()}
        write_json(file, floors(train, held, source.task.vocab_size))
    return read_json(file)  # type: ignore[no-any-return]


def _batches(test: Task, rows: int, batch_size: int) -> Iterator[Any]:
    """The rows of a test, always the same ones."""
    for first in range(0, rows, batch_size):
        yield test.sample(min(batch_size, rows - first), _TEST, first)


# -- one run ------------------------------------------------------------------------------------------------------------------


def _train(contestant: Contestant, seed: int, source: Source, tests: Mapping[str, Task], o: SimpleNamespace, quiet: bool) -> Score:
    begun = time.perf_counter()
    torch.manual_seed(seed)
    model = build(contestant.mixers, source.task, o.d_model, o.layers, contestant.d_ff)
    if contestant.pretrained:
        _pretrain(model, contestant, seed, source, o)
    model.to(o.device)
    optimizer = make_optimizer(model, o.lr, o.betas, o.weight_decay)
    schedule = Schedule(o.steps, o.lr, o.warmup, o.betas, o.weight_decay, o.clip, o.eval_every)

    def loss_of(step: int) -> Tensor:
        return source.batch(o.batch_size, seed, step).to(o.device).loss(model)  # type: ignore[no-any-return]

    curve: list[tuple[int, float]] = []
    accuracy: dict[str, float] = {}
    step = 0
    with tqdm(total=o.steps, desc=f"{contestant.label} {seed}", unit="step", disable=quiet or not sys.stderr.isatty(), leave=False) as bar:
        while step < o.steps:
            try:
                take_step(model, optimizer, loss_of, step, schedule)
            except NonFiniteError as error:
                raise NonFiniteError(f"{contestant.label}, seed {seed}: {error}") from error
            step += 1
            bar.update()
            if step % o.eval_every == 0 or step == o.steps:
                accuracy = measure(model, tests, o.test_rows, o.batch_size)
                curve.append((step, next(iter(accuracy.values()))))
                bar.set_postfix_str(", ".join(f"{name} {100 * value:.1f} %" for name, value in accuracy.items()))
                if min(accuracy.values()) >= o.stop_at:
                    break
    seconds = time.perf_counter() - begun
    return Score(contestant.label, seed, contestant.parameters, contestant.d_ff, step, seconds, accuracy, curve)


def _pretrain(model: nn.Module, contestant: Contestant, seed: int, source: Source, o: SimpleNamespace) -> None:
    """Denoise the training set, a tenth of it held out, and leave the weights in the model."""
    task = cast(ClassTask, source.task)  # _check has seen to it
    ids, n = source.all(seed).ids, task.vocab_size
    objective = Denoising(o.pretrain, mask_id=n)
    pattern, parts = layout(contestant.mixers, o.layers, contestant.d_ff)
    denoiser = Denoiser(o.d_model, n + 1, pattern, parts, levels=n, ids=True, norm=task.norm, norm_f=True)
    held = max(1, min(512, len(ids) // 10))
    denoise(denoiser, ids[held:], ids[:held], objective, o.pretrain_steps, o.batch_size, o.lr, o.weight_decay, o.eval_every, seed)
    transfer(denoiser, model)


@torch.no_grad()
def measure(model: nn.Module, tests: Mapping[str, Task], rows: int, batch_size: int = 64) -> dict[str, float]:
    """Test -> share of right answers on ``rows`` rows, always the same ones. The model's training mode is put back."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        accuracy = {}
        for name, test in tests.items():
            right = asked = 0.0
            for batch in _batches(test, rows, batch_size):
                r, n = batch.to(device).score(model)
                right, asked = right + r, asked + n
            accuracy[name] = right / asked
    finally:
        model.train(was_training)
    return accuracy


# -- what is shown ------------------------------------------------------------------------------------------------------------


def _percent(values: Sequence[float]) -> str:
    mean = f"{100 * statistics.fmean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def _draw(found: Comparison, title: str, say: Any) -> None:
    """plot.png: a bar a test and contestant, a dot a seed, chance as a line."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        say("plot.png is not drawn: pip install 'statescan[plots]'")
        return
    rows, tests = found.rows(), found.tests
    height = 0.8 / len(tests)
    figure = Figure(figsize=(7.5, 1.5 + 0.42 * len(rows) * max(1, 0.6 * len(tests))), layout="constrained")
    axes = figure.add_subplot()
    for j, test in enumerate(tests):
        places = [i + (j - (len(tests) - 1) / 2) * height for i in range(len(rows))]
        values = [[100 * v for v in by_test[test]] for _, _, by_test in rows]
        axes.barh(places, [statistics.fmean(v) for v in values], height=0.9 * height, label=test, alpha=0.75)
        dots = [(v, place) for row, place in zip(values, places, strict=True) for v in row]
        axes.scatter([v for v, _ in dots], [place for _, place in dots], s=9, color="black", zorder=3)
    axes.axvline(100 * found.chance, color="grey", linestyle="--", linewidth=1, label="chance")
    if found.floors:
        best = max(found.floors, key=lambda name: found.floors[name][tests[0]])
        axes.axvline(100 * found.floors[best][tests[0]], color="grey", linestyle=":", linewidth=1, label=f"{best}, {tests[0]}")
    axes.set(xlim=(0, 101), xlabel="accuracy, %", title=title, yticks=range(len(rows)))
    axes.set_yticklabels([f"{label}\n{parameters:,}" for label, parameters, _ in rows], fontsize=8)
    axes.invert_yaxis()
    figure.legend(fontsize=8, loc="outside lower center", ncols=len(tests) + 2)
    figure.savefig(found.run / ".plot.png", format="png", dpi=110)
    os.replace(found.run / ".plot.png", found.run / "plot.png")


# -- reading and checking -----------------------------------------------------------------------------------------------------


def _read(file: Path) -> Score:
    saved = read_json(file)
    return Score(**{**saved, "curve": [(step, value) for step, value in saved["curve"]]})


def _check(o: SimpleNamespace) -> None:
    for name in ("d_model", "layers", "heads", "seeds", "steps", "batch_size", "lr", "clip", "test_rows", "eval_every", "threads"):
        if not getattr(o, name) > 0:
            raise ValueError(f"{name} must be greater than 0; got {getattr(o, name)}")
    for name in ("warmup", "weight_decay", "parameters", "first_seed", "train_rows", "pretrain_steps", "floor_rows"):
        if not getattr(o, name) >= 0:
            raise ValueError(f"{name} must be 0 or more; got {getattr(o, name)}")
    if not issubclass(lookup(o.task.name), Task):
        raise ValueError(f"{o.task.name} is not a task: see statescan compare --help")
    if o.pretrain_steps and not (issubclass(lookup(o.task.name), ClassTask) and o.train_rows):
        raise ValueError("pretrain_steps needs a training set, train_rows, and a task with one class a row: listops or pathfinder")
    if o.train_rows and o.train_rows < o.batch_size:
        raise ValueError(f"train_rows must be at least batch_size={o.batch_size}; got {o.train_rows}")
    if not o.mixers:
        raise ValueError("mixers is empty: name at least one, for example --mixers Mamba,Mamba2")
    if o.layers > 25:
        raise ValueError(f"layers must be 25 or fewer; got {o.layers}")
