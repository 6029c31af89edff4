"""``statescan classify`` and ``regress``: labelled sequences in; a fitted model, its scores beside the floors and a plot out."""

from __future__ import annotations

import inspect
import re
import sys
import time as clock
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from statescan.data.labelled import Features, Labelled, read_labelled
from statescan.estimators.classifier import SequenceClassifier
from statescan.estimators.pictures import draw_confusion, draw_points, draw_trace
from statescan.estimators.regressor import SequenceRegressor, r2
from statescan.estimators.simple import ridge
from statescan.estimators.supervised import SequenceEstimator
from statescan.files import write_json, write_text
from statescan.procedures.floors import Recurrent, small_transformer
from statescan.procedures.options import plain
from statescan.procedures.runs import RunFolder, digest
from statescan.spec import Spec


@dataclass(frozen=True)
class Result:
    """What a run left behind."""

    run: Path
    scores: Mapping[str, Mapping[str, float]]
    """Who -> on the test part: ``accuracy``; or ``r2`` and ``rmse``, the root of the mean squared error."""
    seconds: Mapping[str, float]
    """Who -> spent on fitting."""
    parameters: Mapping[str, int]
    validation: float | None
    """Lowest loss on the validation part (without one, on the training part)."""
    test: str
    files: str

    def __str__(self) -> str:
        return f"{self.table()}\n\n{self.test}; {self.files} in {self.run}"

    def table(self) -> str:
        """Markdown."""
        measures = list(next(iter(self.scores.values())))
        heads = {"accuracy": "accuracy, %", "r2": "R2", "rmse": "rmse"}
        lines = [f"| model | parameters | seconds | {' | '.join(heads[m] for m in measures)} |", f"|---|--:|--:|{'--:|' * len(measures)}"]
        for name, values in self.scores.items():
            cells = [f"{100 * values[m]:.1f}" if m == "accuracy" else f"{values[m]:.4g}" for m in measures]
            counts = [f"{self.parameters[name]:,}", f"{self.seconds[name]:.0f}"] if name in self.seconds else ["", ""]
            lines.append(f"| {' | '.join([name, *counts, *cells])} |")
        return "\n".join(lines)


def classify(
    data: str,
    run: str = "runs/classify",
    label: str | None = None,
    test: str | None = None,
    rate: int | None = None,
    features: Features = "raw",
    size: int | None = None,
    per_step: bool = False,
    mixer: Spec[Any] = Spec("Mamba"),
    d_model: int = 64,
    layers: int = 4,
    low_layers: int = 0,
    stride: int = 1,
    pool: Literal["mean", "last"] = "mean",
    augment: bool = False,
    steps: int = 1000,
    lr: float = 2e-3,
    batch_size: int = 32,
    weight_decay: float = 0.05,
    patience: int = 0,
    dropout: float = 0.1,
    val_fraction: float = 0.1,
    floor: bool = True,
    plot: bool = True,
    seed: int = 0,
    quiet: bool = False,
    resume: bool = False,
) -> Result:
    """Classify sequences, or each of their positions: fit, measure on a test part beside simple classifiers, draw the confusion matrix.

    Args:
        data: a folder of wav files or images, an .npz file with X and y, or a .ts file.
        run: folder for all that comes out.
        label: for files in a folder, a regular expression whose group is the label, for example '^(.)_'; or a CSV file, names of files in
            its first column; by default the folder's name.
        test: another file or folder to test on; or a regular expression over the names in `data`; by default a fifth, drawn by the seed.
        rate: samples a second to resample sound to.
        features: of sound raw samples or mel spectra; of images raw pixels, or rows, a row of pixels a position.
        size: pixels each way that images are scaled to.
        per_step: a class for each position of a sequence, or for each frame, as y has them.
        mixer: what looks across positions.
        d_model: width.
        layers: mixers.
        low_layers: mixers of a lower level that reads each frame by itself, as HiSS does; 0 is one matrix.
        stride: positions a frame: a learned matrix maps each frame to the width.
        pool: what becomes of the frames, mean or last.
        augment: vary loudness and the place of the first frame, for sound.
        steps: optimiser steps.
        lr: peak learning rate.
        batch_size: sequences a step.
        weight_decay: of matrices.
        patience: validations without progress after which the fit ends; 0 goes through all steps.
        dropout: of what each block adds.
        val_fraction: of the training sequences, to decide which weights were best.
        floor: fit an LSTM and a small transformer too: the same network around another mixer.
        plot: draw confusion.png.
        seed: of weights, batches and parts.
        quiet: no progress bar.
        resume: continue the run in this folder.
    """
    return _supervise(SequenceClassifier, "classify", dict(locals()))


def regress(
    data: str,
    run: str = "runs/regress",
    label: str | None = None,
    test: str | None = None,
    rate: int | None = None,
    features: Features = "raw",
    size: int | None = None,
    per_step: bool = False,
    mixer: Spec[Any] = Spec("Mamba"),
    d_model: int = 64,
    layers: int = 4,
    low_layers: int = 0,
    stride: int = 1,
    pool: Literal["mean", "last"] = "mean",
    augment: bool = False,
    steps: int = 1000,
    lr: float = 2e-3,
    batch_size: int = 32,
    weight_decay: float = 0.05,
    patience: int = 0,
    dropout: float = 0.1,
    val_fraction: float = 0.1,
    floor: bool = True,
    plot: bool = True,
    seed: int = 0,
    quiet: bool = False,
    resume: bool = False,
) -> Result:
    """Predict numbers from sequences, one or several each or for each position: fit, measure on a test part beside simple regressors, draw.

    Args:
        data: a folder of wav files or images, an .npz file with X and y, or a .ts file.
        run: folder for all that comes out.
        label: for files in a folder, a regular expression whose group is the number, for example '^(.)_'; or a CSV file, names of files in
            its first column; by default the folder's name.
        test: another file or folder to test on; or a regular expression over the names in `data`; by default a fifth, drawn by the seed.
        rate: samples a second to resample sound to.
        features: of sound raw samples or mel spectra; of images raw pixels, or rows, a row of pixels a position.
        size: pixels each way that images are scaled to.
        per_step: numbers for each position of a sequence, or for each frame, as y has them.
        mixer: what looks across positions.
        d_model: width.
        layers: mixers.
        low_layers: mixers of a lower level that reads each frame by itself, as HiSS does; 0 is one matrix.
        stride: positions a frame: a learned matrix maps each frame to the width.
        pool: what becomes of the frames, mean or last.
        augment: vary loudness and the place of the first frame, for sound.
        steps: optimiser steps.
        lr: peak learning rate.
        batch_size: sequences a step.
        weight_decay: of matrices.
        patience: validations without progress after which the fit ends; 0 goes through all steps.
        dropout: of what each block adds.
        val_fraction: of the training sequences, to decide which weights were best.
        floor: fit an LSTM and a small transformer too: the same network around another mixer.
        plot: draw plot.png.
        seed: of weights, batches and parts.
        quiet: no progress bar.
        resume: continue the run in this folder.
    """
    return _supervise(SequenceRegressor, "regress", dict(locals()))


def _supervise(kind: type[SequenceEstimator], verb: str, o: dict[str, Any]) -> Result:
    run = Path(o["run"])
    numbers = kind is SequenceRegressor
    taught, tested, how = _parts(o, numbers)
    deep = any(np.ndim(target) for target in taught.labels)
    if o["per_step"] and not deep:
        raise ValueError("--per_step needs a target for each position, and these data have one for each sequence: leave it out")
    if deep and not o["per_step"] and not numbers:
        raise ValueError("these data have a class for each position: add --per_step")
    right = _below(tested.labels, o["per_step"])
    if (np.isnan(right) if numbers else right == "").all():
        raise ValueError("no target of the test part is known: nothing can be measured")
    if not numbers:
        known, asked = (set(_below(part.labels, o["per_step"]).tolist()) for part in (taught, tested))
        if asked - known - {""}:
            raise ValueError(f"the test part has a class {min(asked - known - {''})!r} that the training part has not")
    arguments = {name: o[name] for name in inspect.signature(kind).parameters}
    kind(**arguments)._check()  # before anything is written
    folder = RunFolder(run, verb)
    options = {name: value for name, value in o.items() if name not in ("plot", "quiet")}
    folder.open(
        plain(options), resume=o["resume"], may_change=("run", "floor"),
        data=digest(a for part in (taught, tested) for a in (*part.sequences, *part.labels)),
    )  # fmt: skip
    say = (lambda line: None) if o["quiet"] else (lambda line: print(line, file=sys.stderr, flush=True))
    say(f"{len(taught.labels)} sequences to learn from, {len(tested.labels)} to test on")
    fitted = kind(**arguments).fit(taught.sequences, taught.labels, folder, f"statescan {verb} --resume {run}")
    fitted.reading_ = {"rate": taught.rate, "features": o["features"]}
    fitted.save(run)
    fits = {o["mixer"].name: fitted}
    say(f"{o['mixer'].name} is fitted after {fitted.fitted_.seconds:.0f} s")
    for name, made in (("LSTM", Recurrent), ("transformer", small_transformer)) if o["floor"] else ():
        say(f"now the floors: {name}")
        fits[name] = kind(**{**arguments, "mixer": made}).fit(taught.sequences, taught.labels)
    begun = clock.perf_counter()
    guesses = {name: fit.predict(tested.sequences) for name, fit in fits.items()}
    say(f"tested in {clock.perf_counter() - begun:.1f} s")
    stride = (o["stride"] if fitted.answers_ == 1 else 1) if o["per_step"] else None
    seen, right = (_below(part.labels, o["per_step"]) for part in (taught, tested))
    answers = {name: _below(guess, o["per_step"]) for name, guess in guesses.items()}
    if isinstance(fitted, SequenceClassifier):
        among = np.where(seen[:, None] == "", np.nan, seen[:, None] == fitted.classes_)
        what, scores = ridge(taught, tested, among, stride)
        answers[what] = fitted.classes_[scores.argmax(1)]
        answers["most frequent class"] = np.full(len(right), fitted.classes_[np.nansum(among, 0).argmax()])
    else:
        seen, right = seen.reshape(len(seen), -1), right.reshape(len(right), -1)
        answers = {name: answer.reshape(right.shape) for name, answer in answers.items()}
        what, answers[what] = ridge(taught, tested, seen, stride)
        answers["mean"] = np.broadcast_to(np.nanmean(seen, 0), right.shape)
    result = Result(
        run, {name: _score(right, answer) for name, answer in answers.items()}, {name: fit.fitted_.seconds for name, fit in fits.items()},
        {name: sum(p.numel() for p in fit.model_.parameters()) for name, fit in fits.items()},
        fitted.fitted_.best, how, f"{'confusion' if verb == 'classify' else 'plot'}.png and the {fitted._kind}",
    )  # fmt: skip
    write_text(run / "table.md", result.table() + "\n")
    write_json(run / "scores.json", {
        "scores": result.scores, "seconds": result.seconds, "parameters": result.parameters, "validation": result.validation,
    })  # fmt: skip
    if o["plot"]:
        first, length = answers[o["mixer"].name], len(tested.labels[0]) if o["per_step"] else 0
        if isinstance(fitted, SequenceClassifier):
            draw_confusion(fitted.classes_, right[right != ""], first[right != ""], run / "confusion.png")
        elif o["per_step"]:
            draw_trace(right[:length], first[:length], tested.names[0], "position" if stride == 1 else "frame", run / "plot.png")
        else:
            draw_points(right, first, run / "plot.png")
    return result


def _below(answers: Any, per_step: bool) -> np.ndarray:
    """Those of all sequences below each other."""
    return np.concatenate([np.asarray(row) for row in answers]) if per_step else np.asarray(answers)


def _score(right: np.ndarray, answer: np.ndarray) -> dict[str, float]:
    if right.dtype.kind == "f":
        return {"r2": r2(right, answer), "rmse": float(np.sqrt(np.nanmean((right - answer) ** 2)))}
    return {"accuracy": float((answer == right)[right != ""].mean())}


def _parts(o: Mapping[str, Any], numbers: bool) -> tuple[Labelled, Labelled, str]:
    data, test = o["data"], o["test"]
    how = {"features": o["features"], "size": o["size"], "numbers": numbers}
    every = read_labelled(data, o["label"], o["rate"], **how)
    if test is not None and Path(test).exists():
        return every, read_labelled(test, o["label"], o["rate"] or every.rate, **how), f"tested on {test}"
    if test is not None:
        try:
            chosen = np.array([re.search(test, name) is not None for name in every.names])
        except re.error as error:
            raise ValueError(f"test={test!r} is neither a file, a folder nor a regular expression: {error}") from error
        if chosen.all() or not chosen.any():
            raise ValueError(f"test={test!r} fits {'every' if chosen.all() else 'no'} name, for example {every.names[0]!r}")
        said = f"tested on the {int(chosen.sum())} names that fit {test!r}"
    else:
        order = np.random.default_rng([o["seed"], 2]).permutation(len(every.labels))
        chosen = np.zeros(len(order), bool)
        chosen[order[: max(1, len(order) // 5)]] = True
        said = f"tested on a fifth, {int(chosen.sum())} sequences"
    return every.pick(np.flatnonzero(~chosen)), every.pick(np.flatnonzero(chosen)), said
