"""A search over the options of a command: settings that optuna proposes, several seeds each, a table, a plot and the best command."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import shlex
import statistics
import sys
import time as clock
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from statescan.estimators.pictures import figure
from statescan.files import read_json, replacing, write_json, write_text
from statescan.procedures.interrupt import Interrupted
from statescan.procedures.runs import RunFolder, read_training_state

Setting = dict[str, str]
"""Option -> value, as on a command line."""

_TRIALS = 20
_OURS = ("seed", "first_seed", "run", "resume", "floor", "floor_rows", "plot", "quiet")
"""Options that a sweep sets itself."""
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``; whole ones, or evenly spread logarithms."""

    low: float
    high: float
    whole: bool
    log: bool

    def suggest(self, name: str, trial: Any) -> str:
        """As optuna asks for it, four digits of it."""
        if self.whole:
            return str(trial.suggest_int(name, int(self.low), int(self.high), log=self.log))
        return f"{trial.suggest_float(name, self.low, self.high, log=self.log):.4g}"

    def ends(self) -> list[str]:
        """The lowest and the highest."""
        return [str(int(end)) if self.whole else f"{end:.4g}" for end in (self.low, self.high)]


@dataclass(frozen=True)
class Tried:
    """A setting and how it did."""

    setting: Setting
    values: tuple[float, ...]
    """Of each seed, lower is better; none if it failed."""
    tests: tuple[Mapping[str, float], ...]
    """Of each seed, on the test part."""
    seconds: float
    error: str = ""


@dataclass(frozen=True)
class Swept:
    """What a sweep left behind."""

    run: Path
    tried: tuple[Tried, ...]
    """The best first, what failed last."""
    measure: str
    command: str

    def __str__(self) -> str:
        best = self.tried[0]
        tests = {name: _mean([test[name] for test in best.tests]) for name in best.tests[0]}
        on_test = ", ".join(f"{name} {value}" for name, value in tests.items())
        return f"{self.table()}\n\nthe best on the test part: {on_test}\n{self.command}\n\ntable.md and plot.png in {self.run}"

    def table(self) -> str:
        """Markdown; mean and standard error over seeds."""
        names = list(self.tried[0].setting)
        lines = [f"| {' | '.join(names)} | {self.measure} | seconds |", f"|{'---|' * len(names)}--:|--:|"]
        for tried in self.tried:
            value = _mean(tried.values) if tried.values else f"failed: {tried.error}".replace("|", "/")
            lines.append(f"| {' | '.join(tried.setting.values())} | {value} | {tried.seconds:.0f} |")
        return "\n".join(lines)


def sweep(
    verb: str,
    call: Callable[[list[str]], Any],
    words: Sequence[str],
    over: Sequence[str],
    trials: int | None = None,
    seeds: int = 1,
    run: str = "runs/sweep",
    quiet: bool = False,
) -> Swept:
    """Run ``call`` with the words of a command line and of each setting, and of each seed; the same call does what is missing.

    Args:
        verb: classify, regress, forecast or compare.
        call: takes words, gives the verb's result.
        words: of every setting.
        over: what to search: ``NAME=VALUE,VALUE`` or ``NAME=LOW..HIGH``, with ``:log`` behind it for evenly spread logarithms.
        trials: settings. By default all combinations of values; with a range 20.
        seeds: runs of each setting.
        run: folder for all that comes out.
        quiet: do not say how each setting did.
    """
    optuna = _optuna()
    space = dict(read_range(text) for text in over)
    if not space:
        raise ValueError("nothing to search over: for example --over lr=1e-4..1e-2:log --over d_model=32,64")
    if len(space) < len(over):
        raise ValueError("an option stands under --over twice")
    if seeds < 1 or (trials is not None and trials < 1):
        raise ValueError(f"seeds and trials must be positive; got {seeds} and {trials}")
    named = [*space, *(word[2:].partition("=")[0] for word in words if word.startswith("--"))]
    if taken := [name for name in named if name in _OURS]:
        raise ValueError(f"a sweep sets --{taken[0]} itself: seeds are counted from 0 by --seeds, and every run has a folder of its own")
    folder = Path(run)
    _open(folder, {"verb": verb, "words": list(words), "over": list(over), "data": _state(words, folder)})
    study = optuna.create_study(storage=f"sqlite:///{folder / 'study.db'}", study_name="sweep", load_if_exists=True)
    lists = [values for values in space.values() if not isinstance(values, Range)]
    combinations = list(itertools.product(*lists)) if len(lists) == len(space) else None
    if combinations is not None and trials is None:
        for values in combinations:
            study.enqueue_trial(dict(zip(space, values, strict=True)), skip_if_exists=True)
    total = trials or (_TRIALS if combinations is None else len(combinations))
    for left in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):  # stopped in the middle of it
        study.tell(left.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(left.params)
    study.sampler = optuna.samplers.TPESampler(seed=len(study.trials), n_startup_trials=max(1, min(10, total // 2)))

    def ended() -> list[Any]:
        return [t for t in study.get_trials(deepcopy=False) if "setting" in t.user_attrs]

    try:
        while (count := len(ended())) < total:
            trial = study.ask()
            setting = {
                name: values.suggest(name, trial) if isinstance(values, Range) else trial.suggest_categorical(name, values)
                for name, values in space.items()
            }
            tried = _try(verb, call, words, setting, seeds, folder)
            trial.set_user_attr("setting", setting)
            if tried.values:
                study.tell(trial, statistics.fmean(tried.values))
            else:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            if not quiet:
                shown = _mean(tried.values) if tried.values else f"failed: {tried.error}"
                options = ", ".join(f"{name}={value}" for name, value in setting.items())
                print(f"{count + 1} of {total}: {options}: {shown} ({tried.seconds:.0f} s)", file=sys.stderr, flush=True)
    except KeyboardInterrupt as stop:
        raise Interrupted(f"stopped; {len(ended())} of {total} settings are finished in {run}: the same command does the rest") from stop
    settings = {_key(t.user_attrs["setting"]): t.user_attrs["setting"] for t in ended()[:total]}
    ranked = sorted((_try(verb, call, words, s, seeds, folder) for s in settings.values()), key=_rank)
    if not ranked[0].values:
        raise ValueError(f"every setting failed; the first with: {ranked[0].error}")
    best = [f"--{name}={value}" for name, value in ranked[0].setting.items()]
    measure = "wrong answers, %" if verb == "compare" else "validation loss"
    found = Swept(folder, tuple(ranked), measure, shlex.join(["statescan", verb, *words, *best]))
    write_text(folder / "table.md", f"{found}\n")
    _draw(found, space, folder / "plot.png")
    return found


def read_range(text: str) -> tuple[str, list[str] | Range]:
    """``NAME=...`` of ``--over``."""
    name, equals, values = text.partition("=")
    name = name.removeprefix("--").strip()
    found = re.fullmatch(rf"({_NUMBER})\.\.({_NUMBER})(:log)?", values.strip())
    if not name or not equals or not values.strip():
        raise ValueError(f"--over takes NAME=VALUE,VALUE or NAME=LOW..HIGH, with :log behind it for logarithms; got {text!r}")
    if found is None:
        if ".." in values:
            raise ValueError(f"--over {name} must be a range of numbers such as 1e-4..1e-2:log; got {values!r}")
        return name, list(dict.fromkeys(value.strip() for value in values.split(",")))
    low, high, log = float(found[1]), float(found[2]), found[3] is not None
    if not low < high or (log and low <= 0):
        raise ValueError(f"--over {name}: the range must rise{', from above 0' if log else ''}; got {values!r}")
    return name, Range(low, high, all(re.fullmatch(r"[-+]?\d+", n) for n in found.groups()[:2]), log)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ImportError("a sweep needs optuna: pip install 'statescan[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _open(folder: Path, config: Mapping[str, Any]) -> None:
    file = folder / "sweep.json"
    if file.is_file():
        before = read_json(file)
        for name, value in config.items():
            if before[name] != value and name == "data":
                raise ValueError(
                    f"the data have changed since {folder} was begun: put them back as they were, or begin a new sweep with --run"
                )
            if before[name] != value:
                raise ValueError(f"{folder} holds another sweep, with {name} {before[name]}: give it a folder of its own with --run")
    write_json(file, config)
    for one in folder.glob("settings/*/seed-*.json"):  # what failed is tried again: the mistake may be mended
        if "error" in read_json(one):
            one.unlink()


def _state(words: Sequence[str], own: Path) -> str:
    """Digest of the sizes and times of change of files and folders among the words, but for the sweep's own folder."""
    found, own = [], own.resolve()
    for word in words:
        name = word.partition("=")[2] if word.startswith("--") else word
        if name and (path := Path(name)).exists():
            files = sorted(p for p in path.rglob("*") if p.is_file() and own not in p.resolve().parents) if path.is_dir() else [path]
            found.append([[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files])
    return hashlib.blake2b(json.dumps(found).encode(), digest_size=12).hexdigest()


def _try(verb: str, call: Callable[[list[str]], Any], words: Sequence[str], setting: Setting, seeds: int, folder: Path) -> Tried:
    """Every seed of a setting, from its file where it is finished."""
    place = folder / "settings" / _key(setting)
    values, tests, seconds = [], [], 0.0
    for seed in range(seeds):
        file = place / f"seed-{seed}.json"
        if not file.is_file():
            begun = clock.perf_counter()
            try:
                value, test = _run(verb, call, [*words, *(f"--{name}={v}" for name, v in setting.items())], seed, place / f"seed-{seed}")
            except ValueError as error:
                write_json(file, {"setting": setting, "seconds": clock.perf_counter() - begun, "error": " ".join(str(error).split())})
            else:
                write_json(file, {"setting": setting, "seconds": clock.perf_counter() - begun, "value": value, "test": test})
        one = read_json(file)
        seconds += one["seconds"]
        if "error" in one:
            return Tried(setting, (), (), seconds, one["error"])
        values.append(one["value"])
        tests.append(one["test"])
    return Tried(setting, tuple(values), tuple(tests), seconds)


def _run(verb: str, call: Callable[[list[str]], Any], words: list[str], seed: int, run: Path) -> tuple[float, dict[str, float]]:
    """One run: (what is to be lowered, what the test part says)."""
    if verb == "compare":
        result = call([*words, "--seeds=1", f"--first_seed={seed}", f"--run={run}", "--floor_rows=0", "--quiet=true"])
        if len({score.label for score in result.scores}) > 1:
            raise ValueError("a sweep of compare takes one mixer at a time: --over mixers=Mamba,S4D")
        accuracy = {f"accuracy of {name}, %": 100 * value for name, value in result.scores[0].accuracy.items()}
        return 100 - statistics.fmean(accuracy.values()), accuracy
    result = call([*words, f"--seed={seed}", f"--run={run}", "--resume=true", "--floor=false", "--plot=false", "--quiet=true"])
    latest = RunFolder(run).latest()
    assert latest is not None  # every run ends with a checkpoint
    measured = next(iter((result.errors if verb == "forecast" else result.scores).values()))
    return float(read_training_state(latest)["best"]), dict(measured)


def _key(setting: Setting) -> str:
    return hashlib.blake2b(json.dumps(setting, sort_keys=True).encode(), digest_size=6).hexdigest()


def _rank(tried: Tried) -> float:
    return statistics.fmean(tried.values) if tried.values else math.inf


def _mean(values: Sequence[float]) -> str:
    """Mean and standard error."""
    mean = f"{statistics.fmean(values):.4g}"
    return mean if len(values) < 2 else f"{mean} ± {_error(values):.2g}"


def _error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _draw(found: Swept, space: Mapping[str, list[str] | Range], path: Path) -> None:
    """A panel an option, as wide as what is searched: every setting's value against the option's, with its standard error."""
    done = [tried for tried in found.tried if tried.values]
    picture = figure(0.8 + 3.2 * len(space), 3.4)
    panels = picture.subplots(1, len(space), sharey=True, squeeze=False)[0]
    for axes, (name, values) in zip(panels, space.items(), strict=True):
        x = [float(t.setting[name] if isinstance(values, Range) else values.index(t.setting[name])) for t in done]
        axes.errorbar(x, [_rank(t) for t in done], [_error(t.values) for t in done], fmt="o", markersize=4, alpha=0.7)
        axes.plot(x[:1], [_rank(done[0])], "o", color="C1", label="best")
        if isinstance(values, Range):
            axes.set_xscale("log" if values.log else "linear")
            ticks = np.geomspace(values.low, values.high, 3) if values.log else np.linspace(values.low, values.high, 5)
            ticks = np.unique(ticks.round()) if values.whole else ticks
            axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])  # widens the panel to them
            axes.set_xticks([], minor=True)
        else:
            axes.set_xticks(range(len(values)), values)
        axes.set_xlabel(name)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(found.measure)
    panels[0].legend(fontsize=8)
    with replacing(path) as temporary:
        picture.savefig(temporary, format="png", dpi=110)
