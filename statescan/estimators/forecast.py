"""``statescan forecast``: a table of series in; a fitted forecaster, its errors beside the floors, the forecast and a plot out."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from statescan.data.series import Panel, Series, read_series
from statescan.estimators.forecaster import Forecaster
from statescan.estimators.pictures import figure
from statescan.files import replacing, write_json, write_text
from statescan.procedures.floors import Recurrent, small_transformer
from statescan.procedures.options import plain
from statescan.procedures.runs import RunFolder, digest
from statescan.spec import Spec

_SHOWN = 6
"""Series in a plot; a picture of a hundred shows none."""


_BY_VARIATE = 4
"""Variates whose errors the table shows one by one; errors.json has all."""
_FLOOR_RATE = 1e-3
"""Learning rate of the floors that are networks, whatever the model learns at."""


@dataclass(frozen=True)
class Forecast:
    """What a run left behind."""

    run: Path
    errors: Mapping[str, Mapping[str, float]]
    """Who -> mean squared and mean absolute error on the test part, of scaled values; of several variates the squared error of each too."""
    seconds: Mapping[str, float]
    """Who -> spent on fitting."""
    parameters: Mapping[str, int]
    test: str

    def __str__(self) -> str:
        return f"{self.table()}\n\n{self.test}; forecast.csv, plot.png and the forecaster in {self.run}"

    def table(self) -> str:
        """Markdown."""
        names = [name for name in next(iter(self.errors.values())) if name.startswith("mse of ")]
        shown = ["mse", "mae", *(names if len(names) <= _BY_VARIATE else ())]
        lines = [f"| forecast | parameters | seconds | {' | '.join(shown)} |", f"|---|--:|--:|{'--:|' * len(shown)}"]
        for name, errors in self.errors.items():
            fitted = f"{self.parameters[name]:,} | {self.seconds[name]:.0f}" if name in self.parameters else " | "
            lines.append(f"| {name} | {fitted} | {' | '.join(f'{errors[key]:.4f}' for key in shown)} |")
        return "\n".join(lines)


def forecast(
    data: str,
    horizon: int = 24,
    run: str = "runs/forecast",
    time: str | None = None,
    id: str | None = None,
    targets: str | list[str] | None = None,
    rows: int | None = None,
    context: int = 192,
    mixer: Spec[Any] = Spec("Mamba"),
    d_model: int = 64,
    layers: int = 2,
    model: Spec[Any] | None = None,
    joint: bool | None = None,
    quantiles: list[float] | None = None,
    steps: int = 1000,
    lr: float = 1e-3,
    batch_size: int = 32,
    patience: int = 5,
    val_size: int | None = None,
    test_size: int | None = None,
    stride: int = 1,
    season: int | None = None,
    floor: bool = True,
    seed: int = 0,
    plot: bool = True,
    quiet: bool = False,
    resume: bool = False,
) -> Forecast:
    """Forecast a table of series: fit, compare with simple forecasts on the last part, forecast beyond the end, draw.

    Args:
        data: a .csv or .parquet file, wide or long, with or without gaps and even spacing.
        horizon: steps ahead.
        run: folder for all that comes out.
        time: the column of times; by default one called ds, date, time, timestamp or datetime.
        id: the column that names the series, in a long table.
        targets: columns to forecast; by default every numeric one.
        rows: use only so many rows of each series, from the first.
        context: positions that a forecast starts from.
        mixer: what looks across positions.
        d_model: width.
        layers: mixers.
        model: a published forecaster in place of the network around a mixer: SMamba or SpaceTime.
        joint: model all variates together; otherwise each is a series of its own. By default as the model was made, apart for a mixer.
        quantiles: levels of the bands; by default 0.1, 0.5 and 0.9.
        steps: optimiser steps, at most.
        lr: peak learning rate.
        batch_size: windows a step.
        patience: validations without progress after which the fit ends; 0 goes through all steps.
        val_size: positions before the test part that decide when to stop; by default a tenth.
        test_size: positions at the end that errors are measured on; by default a fifth.
        stride: distance between the windows that errors are measured on.
        season: of the seasonal floor; by default what autocorrelation finds.
        floor: fit an LSTM and a small transformer too.
        seed: of weights and batches.
        plot: draw plot.png.
        quiet: no progress bar.
        resume: continue the run in this folder.
    """
    options = {name: value for name, value in locals().items() if name not in ("plot", "quiet")}
    for name, value in (("stride", stride), ("rows", rows), ("season", season)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be greater than 0; got {value}")
    panel = read_series(data, time, id, targets).filled()
    if rows is not None:
        panel = panel._replace(series=tuple(series.slice(0, rows) for series in panel.series))
    shortest = min(len(series.times) for series in panel.series)
    test = max(horizon, shortest // 5) if test_size is None else test_size
    val = max(horizon, shortest // 10) if val_size is None else val_size
    arguments: dict[str, Any] = {
        "horizon": horizon, "context": context, "mixer": mixer, "d_model": d_model, "layers": layers, "model": model, "joint": joint,
        "quantiles": tuple(quantiles or (0.1, 0.5, 0.9)), "steps": steps, "lr": lr, "batch_size": batch_size, "patience": patience,
        "seed": seed, "quiet": quiet,
    }  # fmt: skip
    forecaster = Forecaster(**arguments)
    folder = RunFolder(run, "forecast")
    forecaster.check(panel, val, test)
    if model is not None:
        options["model"] = forecaster.published()  # its defaults are not this forecast's sizes
    read = digest([panel.variates, *(array for s in panel.series for array in (s.name, s.stamps, s.values))])
    folder.open(plain(options), resume=resume, may_change=("run", "stride", "floor"), data=read)
    say = (lambda line: None) if quiet else (lambda line: print(line, file=sys.stderr, flush=True))
    resume_with = f"statescan forecast --resume {run}"
    fits = {forecaster.name: forecaster.fit(panel, val, test, folder=folder, resume_with=resume_with)}
    done = forecaster.fitted_
    say(f"{forecaster.name} is fitted after {done.seconds:.0f} s: best after {done.best_step} of {done.step} steps")
    errors = forecaster.score(test, val, stride, season)
    ahead = forecaster.predict()
    with replacing(Path(run) / "forecast.csv") as file:
        ahead.to_csv(file, index=False)
    forecaster.save(run)
    for name, made in (("LSTM", Recurrent), ("transformer", small_transformer)) if floor else ():
        say(f"now the floors: {name}")
        network = Forecaster(**{**arguments, "mixer": made, "model": None, "joint": forecaster.together, "lr": _FLOOR_RATE})
        fits[name] = network.fit(panel, val, test, folder=RunFolder(Path(run) / name, "forecast"), resume_with=resume_with)
        errors[name] = network.score(test, val, stride, season)[network.name]
    result = Forecast(
        Path(run), errors, {name: fitted.fitted_.seconds for name, fitted in fits.items()},
        {name: sum(p.numel() for p in fitted.model_.parameters()) for name, fitted in fits.items()},
        f"errors of scaled values on the last {test} positions, {horizon} ahead",
    )  # fmt: skip
    write_text(Path(run) / "table.md", result.table() + "\n")
    write_json(Path(run) / "errors.json", errors)
    if plot:
        draw(panel, ahead, Path(run) / "plot.png", 3 * horizon)
    return result


def draw(panel: Panel, ahead: Any, path: Path, past: int) -> None:
    """The end of the first series and variates, and the forecast with its bands."""
    shown: list[tuple[Series, str, int]] = [(s, name, v) for s in panel.series for v, name in enumerate(panel.variates)][:_SHOWN]
    picture = figure(9, 0.6 + 2 * len(shown))
    from matplotlib.dates import ConciseDateFormatter  # after figure, which says what to install

    bands = sorted(c for c in ahead.columns if c.startswith("q"))
    for axes, (series, name, v) in zip(np.atleast_1d(picture.subplots(len(shown), 1)), shown, strict=True):
        mine = ahead[(ahead.unique_id == series.name) & (ahead.variate == name)]
        axes.plot(
            series.stamps[-past:],
            series.values[-past:, v],
            color="black",
            linewidth=1,
            marker="." if not series.even else None,
            markersize=3,
        )
        axes.plot(mine.ds, mine["mean"], color="C0", label="mean")
        if len(bands) > 1:
            axes.fill_between(mine.ds, mine[bands[0]], mine[bands[-1]], color="C0", alpha=0.25, label=f"{bands[0][1:]} to {bands[-1][1:]}")
        axes.set_title(f"{series.name}: {name}" if len(panel.series) > 1 else name, fontsize=9, loc="left")
        axes.grid(alpha=0.3)
        if series.stamps.dtype.kind == "M":
            axes.xaxis.set_major_formatter(ConciseDateFormatter(axes.xaxis.get_major_locator()))
    picture.axes[0].legend(fontsize=8, loc="lower left", bbox_to_anchor=(0.8, 1.0), ncols=2, frameon=False)
    with replacing(path) as temporary:
        picture.savefig(temporary, format="png", dpi=110)
