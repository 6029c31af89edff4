"""``statescan stream``: values in, one at a time; a line out for each, at once; and a state that goes on where it stood."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from statescan import state as states
from statescan.data.labelled import read_sound
from statescan.estimators.classifier import SequenceClassifier
from statescan.estimators.forecaster import Forecaster
from statescan.estimators.regressor import SequenceRegressor
from statescan.estimators.supervised import SequenceEstimator


def stream(model: str, source: str = "-", *, state: str | None = None, every: int = 1, horizon: int | None = None) -> Iterator[str]:
    """Lines of predictions, each as soon as its values have come.

    A classifier answers after each frame with the position, the likeliest class and its probability, a regressor with the position and its
    numbers; one that was fitted per step answers for each position of the frame. A line of values holds one position, its channels divided
    by commas. A forecaster takes a table with a header, a row an observation, and answers with the next steps' means.

    Args:
        model: folder of a run of classify, regress or forecast.
        source: a wav file (of a classifier or regressor), a file of lines, or - for standard input.
        state: file (of a forecaster: folder) that the state is read from, if it is there, and written to at the end, also after Ctrl-C.
        every: a line for every so many frames or rows.
        horizon: steps of a forecast that are printed; by default one.
    """
    if every < 1:
        raise ValueError(f"every must be 1 or more; got {every}")
    folder = Path(model)
    for kind in (SequenceClassifier, SequenceRegressor):
        if (folder / f"{kind._kind}.json").is_file():
            return _answers(kind.load(folder), source, state, every)
    if (folder / "forecaster.json").is_file():
        return _forecasts(Forecaster.load(folder), source, state, every, 1 if horizon is None else horizon)
    raise ValueError(f"{model} holds no classifier, regressor or forecaster: give the folder of a run of classify, regress or forecast")


def _answers(estimator: SequenceEstimator, source: str, file: str | None, every: int) -> Iterator[str]:
    before = states.load(file) if file is not None and Path(file).is_file() else None
    live = estimator.stream(before)  # type: ignore[arg-type]
    seen = 0
    try:
        for positions in _positions(source, estimator):
            for answer in live.push(positions):
                seen += 1
                if seen % every == 0:
                    yield from _lines_of(seen * estimator.stride, estimator, answer)
        if len(live.state.waiting) or (seen % every and not estimator.per_step):
            yield from _lines_of(seen * estimator.stride + len(live.state.waiting), estimator, live.now())
    finally:
        if file is not None:
            states.save(live.state, file)


def _lines_of(end: int, estimator: SequenceEstimator, answer: np.ndarray) -> Iterator[str]:
    """A line of the answer for all ``end`` positions; or one each of the last of them."""
    each = answer if estimator.per_step else answer[None]
    for position, values in zip(range(end - len(each) + 1, end + 1), each, strict=True):
        if isinstance(estimator, SequenceClassifier):
            best = int(values.argmax())
            yield f"{position}\t{estimator.classes_[best]}\t{values[best]:.4f}"
        else:
            yield "\t".join([str(position), *(f"{v:.6g}" for v in values)])


def _positions(source: str, estimator: SequenceEstimator) -> Iterator[np.ndarray]:
    channels, kind = estimator.n_features_in_, estimator._kind
    if source.lower().endswith(".wav"):
        samples = read_sound(source, **estimator.reading_)
        if samples.shape[1] != channels:
            raise ValueError(f"{source} has {samples.shape[1]} channels where the {kind} was fitted on {channels}")
        yield samples
        return
    for number, line in enumerate(_lines(source), 1):
        if line.strip():
            try:
                values = [float(v) if v.strip() else np.nan for v in line.split(",")]
            except ValueError as error:
                raise ValueError(f"line {number} of {_called(source)} holds no numbers: {line.strip()!r}") from error
            if len(values) != channels:
                raise ValueError(f"line {number} of {_called(source)} has {len(values)} values where the {kind} was fitted on {channels}")
            yield np.array([values], np.float32)


def _forecasts(forecaster: Forecaster, source: str, file: str | None, every: int, horizon: int) -> Iterator[str]:
    import pandas as pd

    if file is not None and (Path(file) / "forecaster.json").is_file():
        forecaster = Forecaster.load(file)
    header: list[str] | None = None
    seen = 0
    try:
        for number, line in enumerate(_lines(source), 1):
            if not line.strip():
                continue
            cells = [cell.strip() for cell in line.strip().split(",")]
            if header is None:
                header = cells
                continue
            if len(cells) != len(header):
                raise ValueError(f"line {number} of {_called(source)} has {len(cells)} cells under a header of {len(header)}")
            row = {name: [_number(cell)] for name, cell in zip(header, cells, strict=True)}
            forecaster.update(pd.DataFrame(row))
            seen += 1
            if seen % every == 0:
                yield from _rows(forecaster.predict(horizon))
    finally:
        if file is not None:
            forecaster.save(file)


def _rows(frame: Any) -> Iterator[str]:
    for name, variate, ds, mean in zip(frame.unique_id, frame.variate, frame.ds, frame["mean"], strict=True):
        yield f"{name}\t{variate}\t{ds}\t{mean:.6g}"


def _number(cell: str) -> float | str:
    try:
        return float(cell) if cell else np.nan
    except ValueError:
        return cell


def _lines(source: str) -> Iterable[str]:
    if source == "-":
        return sys.stdin
    if not Path(source).is_file():
        raise ValueError(f"there is no file {source}")
    return open(source, encoding="utf-8")  # read to its end by the loop that asked for it


def _called(source: str) -> str:
    return "standard input" if source == "-" else source
