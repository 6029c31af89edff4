"""Forecasting with the manners of forecasters: fit, predict, predict_quantiles, cross_validation, update, save and load."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from statescan import registry
from statescan import state as states
from statescan.data.series import Panel, read_series
from statescan.estimators.base import Estimator
from statescan.estimators.floors import against_floors
from statescan.estimators.rows import Row, Scale, make_rows, windows
from statescan.files import read_json, read_safetensors, write_json, write_safetensors
from statescan.heads.horizon import SeriesModel, SeriesState, check_quantiles
from statescan.heads.windowed import Windowed, WindowForecaster
from statescan.procedures.fit import Fitted, Schedule, fit
from statescan.procedures.runs import RunFolder
from statescan.spec import Spec, defaults, hints_of
from statescan.timeline import Timeline

_POSITIONS = 32
"""Positions of a window that a training step learns from: a forecast of a whole horizon at every one would be mostly the same."""
_VALIDATED = 256
"""Forecasts that a validation looks at, spread over the validation part of all rows."""
_TOGETHER = 64
"""Windows forecast at once."""


class Forecaster(Estimator):
    """Forecast any number of steps ahead, with quantiles, from all that came before.

    A causal model reads each series position by position and forecasts the whole horizon from where it stands, relative to the last value
    that it saw. Missing values are inputs like others. Where the time between observations varies, the model is told how much passed.
    New observations move its state by one step each, whatever the length of the past.

    Args:
        horizon: steps ahead.
        context: positions that a window has in training, and that a forecast starts from.
        mixer: what looks across positions: the name of a part, a Spec, or a function of the width that makes a module.
        d_model: width.
        layers: mixers, each with a gated MLP behind it.
        model: a published forecaster in place of all that: the name of a model or part, or a Spec, for example ``SMamba`` or ``SpaceTime``.
            It reads whole windows of ``context`` even positions (gaps hold the last value before them) and forecasts means, no quantiles.
        joint: one model of all variates together; otherwise each variate is a series of its own, and all are forecast by the same weights.
            None: as the model was made, apart where it is no published one.
        quantiles: levels, rising.
        steps, lr, batch_size, patience: of the fit; see :class:`statescan.procedures.fit.Schedule`.
        seed: of weights and batches.
        quiet: no progress bar.
    """

    def __init__(
        self,
        horizon: int,
        context: int = 192,
        mixer: str | Spec[Any] | Callable[[int], nn.Module] = "Mamba",
        d_model: int = 64,
        layers: int = 2,
        model: str | Spec[Any] | None = None,
        joint: bool | None = None,
        quantiles: Sequence[float] = (0.1, 0.5, 0.9),
        steps: int = 1000,
        lr: float = 1e-3,
        batch_size: int = 32,
        patience: int = 5,
        seed: int = 0,
        quiet: bool = True,
    ) -> None:
        self.horizon, self.context, self.mixer, self.d_model, self.layers = horizon, context, mixer, d_model, layers
        self.model, self.joint, self.quantiles, self.steps, self.lr, self.batch_size, self.patience = (
            model, joint, quantiles, steps, lr, batch_size, patience
        )  # fmt: skip
        self.seed, self.quiet = seed, quiet

    # -- fitting ----------------------------------------------------------------------------------------------------------------

    def fit(
        self,
        data: Any,
        val_size: int | None = None,
        test_size: int = 0,
        time: str | None = None,
        id: str | None = None,
        targets: str | list[str] | None = None,
        folder: RunFolder | None = None,
        resume_with: str = "",
    ) -> Forecaster:
        """Learn from series; see :func:`statescan.data.series.read_series` for what ``data`` may be, ``time``, ``id`` and ``targets``.

        Args:
            val_size: positions at the end of each series, before the test part, that decide when to stop; None is a tenth, at least a
                horizon.
            test_size: positions at the very end of each series that nothing is learned from.
            folder: where checkpoints go; a fit that was stopped continues from there.
            resume_with: the command that continues it.
        """
        self._source: dict[str, Any] = {"time": time, "id": id, "targets": targets}
        panel = self._read(data)
        val = max(self.horizon, min(len(series.times) for series in panel.series) // 10) if val_size is None else val_size
        self.check(panel, val, test_size)
        self.variates_, self.step_, self.uneven_ = panel.variates, panel.step, not panel.even
        rows = make_rows(panel, self.together, train=-(val + test_size))
        self.scales_ = {row.key: row.scale for row in rows}
        torch.manual_seed(self.seed)
        self.model_ = self._build()
        self.history_ = rows
        self._states: list[tuple[Tensor, Tensor, SeriesState]] = []
        ends = [len(row.times) - val - test_size for row in rows]  # rows of the training part
        checks = self._origins(rows, [(end, end + val) for end in ends])
        loss = self._loss if isinstance(self.model_, SeriesModel) else self._window_loss
        self.fitted_: Fitted = fit(
            self.model_, lambda step: loss(rows, ends, step), lambda: self._validate(rows, checks),
            Schedule(self.steps, self.lr, eval_every=max(1, min(100, self.steps // 10)), patience=self.patience),
            folder=folder, quiet=self.quiet, resume_with=resume_with,
        )  # fmt: skip
        self.model_.eval()
        return self

    def check(self, panel: Panel, val_size: int, test_size: int) -> None:
        """Raise where the arguments are impossible, or the series too short for them."""
        for name in ("horizon", "context", "d_model", "layers", "steps", "lr", "batch_size"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be greater than 0; got {getattr(self, name)}")
        check_quantiles(self.quantiles)
        if val_size < self.horizon or test_size < 0:
            raise ValueError(
                f"val_size must be at least the horizon, {self.horizon}, and test_size 0 or more; got {val_size} and {test_size}"
            )
        panel.check()
        shortest = min(panel.series, key=lambda series: len(series.times))
        if len(shortest.times) - val_size - test_size < self.horizon + 2:
            raise ValueError(
                f"series {shortest.name} has {len(shortest.times)} positions: too few to learn to forecast {self.horizon} ahead, with "
                f"{val_size} to validate on and {test_size} to test on; shorten the horizon, or leave short series out"
            )
        for part, size, end in (("validation", val_size, test_size), ("test", test_size, 0)):
            if size and not any((~np.isnan(s.values[len(s.times) - end - size : len(s.times) - end])).any() for s in panel.series):
                raise ValueError(f"the {part} part, {size} positions, has no observed value: choose another val_size or test_size")
        make_rows(panel, self.together, train=-(val_size + test_size))  # which needs an observed value of each to find a scale
        if self.model is None:
            self.make_mixer(self.d_model)  # what it refuses, it refuses before a run begins
        else:
            if not panel.even:
                raise ValueError(f"{self.name} reads evenly spaced windows, and these series are uneven: use a mixer instead of a model")
            self.variates_, self.uneven_ = panel.variates, False
            width = len(panel.variates) if self.together else 1
            with torch.random.fork_rng():  # what the network refuses, it refuses before a run begins
                self.published()().loss(torch.zeros(1, self.context, width), torch.zeros(1, self.horizon, width))

    @property
    def name(self) -> str:
        """What forecasts: the name of the model, or of the mixer."""
        part = self.mixer if self.model is None else self._model_spec()
        return part if isinstance(part, str) else part.name if isinstance(part, Spec) else getattr(part, "__name__", repr(part))

    @property
    def together(self) -> bool:
        """Whether one model sees all variates."""
        if self.joint is not None or self.model is None:
            return bool(self.joint)
        return bool(registry.lookup(self.name).reads_across)  # type: ignore[attr-defined]

    def _read(self, data: Any) -> Panel:
        return (data if isinstance(data, Panel) else read_series(data, **self._source)).filled()

    def _build(self) -> SeriesModel | Windowed:
        variates = len(self.variates_) if self.together else 1
        if self.model is None:
            parts: dict[str, Callable[[int], nn.Module]] = {"M": self.make_mixer, "F": Spec("GatedMLP", d_ff=2 * self.d_model)}
            return SeriesModel(variates, self.horizon, self.quantiles, self.d_model, f"(MF)*{self.layers}", parts, self.uneven_)
        return Windowed(self.published()(), self.horizon)

    def published(self) -> Spec[Any]:
        """``model`` with the sizes that the data and the other arguments decide."""
        spec = self._model_spec()
        sizes = {"length": self.context, "horizon": self.horizon, "d_input": len(self.variates_) if self.together else 1}
        for name, size in sizes.items():
            if spec.arguments.get(name, size) != size:
                raise ValueError(f"{spec.name} has {name}={spec.arguments[name]} where this forecast needs {size}: leave it out")
        return spec.override({name: size for name, size in sizes.items() if name in hints_of(registry.lookup(spec.name))})

    def _model_spec(self) -> Spec[Any]:
        """``model`` as a Spec."""
        spec = self.model
        if isinstance(spec, str):
            spec = registry.models[spec].spec if spec in registry.models else Spec(spec)
        assert spec is not None
        if not issubclass(registry.lookup(spec.name), WindowForecaster):
            able = [name for name, cls in registry.parts.items() if issubclass(cls, WindowForecaster)]
            raise ValueError(f"{spec.name} is no forecaster of windows: model must be {', '.join(able)}; other parts are given as mixer")
        given = {"mixer": self.mixer.name if isinstance(self.mixer, Spec) else self.mixer, "d_model": self.d_model, "layers": self.layers}
        changed = [name for name, value in given.items() if value != defaults(Forecaster)[name]]
        if changed:
            raise ValueError(f"{changed[0]} is of the network around a mixer: give {spec.name} its own arguments, or no model")
        if tuple(self.quantiles) != defaults(Forecaster)["quantiles"]:
            raise ValueError(f"{spec.name} forecasts means: quantiles need a mixer instead of a model")
        return spec

    def make_mixer(self, width: int) -> nn.Module:
        """A layer's mixer."""
        return (Spec(self.mixer) if isinstance(self.mixer, str) else self.mixer)(width)

    def _loss(self, rows: list[Row], ends: list[int], step: int) -> Tensor:
        """Of random windows within the training part, at random positions of each; the step's number is the seed."""
        rng = np.random.default_rng([self.seed, step])
        chosen = rng.choice(len(rows), self.batch_size, p=np.array(ends) / sum(ends))
        # a window may begin before a row does: short pasts are learned too
        last = [int(rng.integers(2, ends[i])) if ends[i] <= self.context else int(rng.integers(self.context // 2, ends[i])) for i in chosen]
        picked = [rows[i] for i in chosen]
        values, line = windows(picked, last, self.context, self.uneven_)
        places = [rng.integers(max(0, self.context - end), self.context, _POSITIONS) for end in last]
        targets = np.stack([
            row.targets(end - self.context + place, self.horizon, ends[i])
            for row, end, place, i in zip(picked, last, places, chosen, strict=True)
        ])  # fmt: skip
        h, seen, _ = self.model_.read(values, line)
        index = torch.from_numpy(np.stack(places)).unsqueeze(2)
        h, seen = (t.gather(1, index.expand(-1, -1, t.shape[2])) for t in (h, seen))
        return self.model_.loss(self.model_.forecast(h, seen), torch.from_numpy(targets.astype(np.float32)))

    def _window_loss(self, rows: list[Row], ends: list[int], step: int) -> Tensor:
        """Of random whole windows within the training part, of which a horizon follows; the step's number is the seed."""
        rng = np.random.default_rng([self.seed, step])
        starts = np.array([max(1, min(self.context, end - self.horizon)) for end in ends])  # a short row has short windows
        counts = np.array(ends) - self.horizon - starts + 1
        chosen = rng.choice(len(rows), self.batch_size, p=counts / counts.sum())
        last = [int(starts[i] + rng.integers(counts[i])) for i in chosen]
        assert isinstance(self.model_, Windowed)
        values, _ = windows([rows[i] for i in chosen], last, self.context, False)
        target = np.concatenate([rows[i].targets(np.array([end - 1]), self.horizon, ends[i]) for i, end in zip(chosen, last, strict=True)])
        return self.model_.teach(values, torch.from_numpy(target.astype(np.float32)))

    def _origins(self, rows: list[Row], parts: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
        """(row, end of the window, where its targets must end): whole horizons within each part, evenly spread."""
        every = [(i, end, stop) for i, (start, stop) in enumerate(parts) for end in range(start, stop - self.horizon + 1)]
        return every[:: max(1, len(every) // _VALIDATED)]

    def _validate(self, rows: list[Row], origins: list[tuple[int, int, int]]) -> float:
        out = self._forecasts(rows, [(i, end) for i, end, _ in origins])
        target = np.concatenate([rows[i].targets(np.array([end - 1]), self.horizon, stop) for i, end, stop in origins])
        return float(self.model_.loss(out, torch.from_numpy(target.astype(np.float32))))

    @torch.no_grad()
    def _forecasts(self, rows: list[Row], origins: Sequence[tuple[int, int]]) -> Tensor:
        """(n, horizon, V, 1 + quantiles), scaled, each from the ``context`` positions before its origin."""
        out = []
        for first in range(0, len(origins), _TOGETHER):
            some = origins[first : first + _TOGETHER]
            values, line = windows([rows[i] for i, _ in some], [end for _, end in some], self.context, self.uneven_)
            h, last, _ = self.model_.read(values, line)
            out.append(self.model_.forecast(h[:, -1], last[:, -1]))
        return torch.cat(out)

    # -- forecasting ------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, h: int | None = None, data: Any = None) -> Any:
        """The next ``h`` steps (by default the horizon) of every series: a frame with unique_id, ds, variate, mean and a column a quantile.

        Without ``data`` from the end of what was fitted and updated with; with it from the end of that, which may be other series.
        """
        self._fitted()
        h = self.horizon if h is None else h
        if not 0 < h <= self.horizon:
            raise ValueError(f"h must lie in 1..{self.horizon}, the horizon that was fitted; for more fit with a longer horizon; got {h}")
        if data is None:
            rows = self.history_
        else:
            rows = self._rows(data)
        if data is None and isinstance(self.model_, SeriesModel):
            out = torch.cat([self.model_.forecast(state[0], state[1]) for state in self._state()])
        else:
            out = self._forecasts(rows, [(i, len(row.times)) for i, row in enumerate(rows)])
        ends = [(row, row.stamps[-1]) for row in rows]
        return _frame(ends, out[:, :h].numpy(), self.variates_, self.step_, self.model_.quantiles).drop(columns="cutoff")

    def predict_quantiles(self, h: int | None = None, data: Any = None) -> Any:
        """:meth:`predict` without the means."""
        self._fitted()
        if not self.model_.quantiles:
            raise ValueError(f"{self.name} forecasts means: quantiles need a mixer instead of a model")
        return self.predict(h, data).drop(columns="mean")

    def cross_validation(self, data: Any = None, n_windows: int = 1, step_size: int | None = None) -> Any:
        """Forecasts from the ``n_windows`` last places of each series that a whole horizon follows, ``step_size`` apart (a horizon), beside
        what came: :meth:`predict`'s frame with the columns ``cutoff`` and ``y``. The model is not fitted again."""
        self._fitted()
        rows = self.history_ if data is None else self._rows(data)
        step_size = self.horizon if step_size is None else step_size
        if n_windows < 1 or step_size < 1:
            raise ValueError(f"n_windows and step_size must be positive; got {n_windows} and {step_size}")
        origins = []
        for i, row in enumerate(rows):
            ends = [len(row.times) - self.horizon - k * step_size for k in reversed(range(n_windows))]
            if ends[0] < 1:
                raise ValueError(f"series {row.key[0]} has {len(row.times)} positions: too few for {n_windows} windows {step_size} apart")
            origins += [(i, end) for end in ends]
        out = self._forecasts(rows, origins)
        cutoffs = [(rows[i], rows[i].stamps[end - 1]) for i, end in origins]
        frame = _frame(cutoffs, out.numpy(), self.variates_, self.step_, self.model_.quantiles)
        came = [rows[i].targets(np.array([end - 1]), self.horizon, len(rows[i].times))[0] for i, end in origins]
        came = [y * rows[i].scale.spread + rows[i].scale.mean for y, (i, _) in zip(came, origins, strict=True)]
        frame["y"] = np.concatenate([y.T.ravel() for y in came])
        return frame

    def update(self, data: Any) -> Forecaster:
        """Take in new observations of the fitted series, in the same format: a step of the state each, however long the past.

        The oldest ones of what is kept for :meth:`cross_validation` and :meth:`score` make room.
        """
        self._fitted()
        if not isinstance(self.model_, SeriesModel):
            raise ValueError(f"{self.name} reads windows and keeps no state to move: give predict the whole past as data")
        new = read_series(data, **self._source) if not isinstance(data, Panel) else data
        states = self._state()
        rows = {row.key: row for row in make_rows(new, self.together, self.scales_)}
        unknown = sorted({key[0] for key in rows} - {row.key[0] for row in self.history_})
        if unknown and len(new.series) == len({row.key[0] for row in self.history_}) == 1:
            rows = {(self.history_[0].key[0], key[1]): row for key, row in rows.items()}  # one series needs no name
            rows = {key: row._replace(values=self._rescaled(row, key), key=key) for key, row in rows.items()}
        elif unknown:
            raise ValueError(f"series {unknown[0]} was not fitted: update takes {', '.join(sorted({r.key[0] for r in self.history_}))}")
        for i, row in enumerate(self.history_):
            if row.key in rows:
                more = rows[row.key]
                if not new.timed:  # rows without a time follow
                    more = more._replace(stamps=row.stamps[-1] + (1 + more.stamps) * self.step_)
                self.history_[i], states[i] = self._advance(row, more, states[i])
        return self

    def _rescaled(self, row: Row, key: tuple[str, str]) -> np.ndarray:
        raw, scale = row.values * row.scale.spread + row.scale.mean, self.scales_[key]
        return (raw - scale.mean) / scale.spread

    @torch.no_grad()
    def _advance(self, row: Row, new: Row, state: Any) -> tuple[Row, Any]:
        if not new.stamps[0] > row.stamps[-1]:
            raise ValueError(f"series {row.key[0]} is known up to {row.stamps[-1]}: new observations must come later; got {new.stamps[0]}")
        times = row.times[-1] + (new.stamps - row.stamps[-1]) / self.step_
        for t, (time, value) in enumerate(zip(times, new.values, strict=True)):
            gap = time - (times[t - 1] if t else row.times[-1])
            if not self.uneven_:
                for _ in range(round(gap) - 1):  # an even model reads a missing row as missing values
                    state = self._step(np.full_like(value, np.nan), 1.0, state)
            state = self._step(value, gap, state)
        kept = slice(len(times), None)  # as much history as before: a stream has no end
        return row._replace(
            stamps=np.concatenate([row.stamps, new.stamps])[kept],
            times=np.concatenate([row.times, times])[kept],
            values=np.concatenate([row.values, new.values])[kept],
        ), state

    def _step(self, value: np.ndarray, gap: float, state: Any) -> Any:
        line = Timeline(interval=torch.tensor([[gap]], dtype=torch.float32)) if self.uneven_ else None
        h, last, after = self.model_.read(torch.from_numpy(value.astype(np.float32)).view(1, 1, -1), line, state[2])
        return h[:, -1], last[:, -1], after

    @torch.no_grad()
    def _state(self) -> list[tuple[Tensor, Tensor, SeriesState]]:
        """(features, last values, state) at the end of each row, batch 1."""
        if not self._states and isinstance(self.model_, SeriesModel):
            for row in self.history_:
                h, last, state = self.model_.read(*windows([row], [len(row.times)], min(self.context, len(row.times)), self.uneven_))
                self._states.append((h[:, -1], last[:, -1], state))
        return self._states

    def _rows(self, data: Any) -> list[Row]:
        panel = self._read(data)
        if panel.variates != self.variates_:
            raise ValueError(f"the model forecasts {', '.join(self.variates_)}; the data has {', '.join(panel.variates)}")
        if not panel.even and not self.uneven_:
            raise ValueError("the model was fitted on evenly spaced series; these are not")
        return make_rows(panel, self.together, self.scales_)

    def _fitted(self) -> None:
        if not hasattr(self, "model_"):
            raise ValueError("this Forecaster is not fitted yet: call fit first, or Forecaster.load")

    # -- against the floors -----------------------------------------------------------------------------------------------------

    def score(self, test_size: int, val_size: int, stride: int = 1, season: int | None = None) -> dict[str, dict[str, float]]:
        """Errors on the last ``test_size`` positions of what was fitted, beside the floors': {name: {"mse", "mae", "mse of VARIATE"...}}.

        Of scaled values, on windows ``stride`` apart, all whose horizon lies within the test part; what precedes it serves as past. The
        ridge learns from the part before validation, on gaps filled with the last value. ``season`` is found by autocorrelation where it
        is not given.
        """
        self._fitted()
        rows = self.history_
        ends = [len(row.times) - test_size for row in rows]
        origins = [(i, end) for i, start in enumerate(ends) for end in range(start, start + test_size - self.horizon + 1, stride)]
        if not origins:
            raise ValueError(f"the test part, {test_size} positions, is shorter than the horizon, {self.horizon}")
        means = self._forecasts(rows, origins)[..., 0].numpy()
        return against_floors(self.name, means, rows, origins, self.variates_, self.context, val_size, season)

    # -- files ------------------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """A folder: forecaster.json, model.safetensors, state.safetensors, and history.safetensors: the last ``context`` positions of every
        series."""
        self._fitted()
        if not isinstance(self.mixer, (str, Spec)):
            raise ValueError("only an estimator whose mixer is a name or a Spec can be saved")
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        rows = self.history_
        parts = {"mixer": self.mixer, "model": None if self.model is None else self.published()}
        described = [
            {"series": key[0], "variate": key[1], "mean": scale.mean.tolist(), "spread": scale.spread.tolist()}
            for key, _, _, _, scale in rows
        ]
        dated = isinstance(self.step_, np.timedelta64)
        step = int(self.step_.astype("timedelta64[ns]").astype(np.int64)) if dated else float(self.step_)
        specs = {name: part.to_dict() if isinstance(part, Spec) else part for name, part in parts.items()}
        arguments = {**self.get_params(), **specs, "quantiles": list(self.quantiles)}
        write_json(path / "forecaster.json", {
            "version": 1, "arguments": arguments, "source": self._source, "variates": list(self.variates_), "step": step, "dated": dated,
            "uneven": self.uneven_, "rows": described,
        })  # fmt: skip
        kept: dict[str, Tensor] = {}
        for i, row in enumerate(rows):
            stamps = row.stamps.astype("datetime64[ns]").astype(np.int64) if dated else row.stamps
            for name, array in (("stamps", stamps), ("times", row.times), ("values", row.values)):
                kept[f"{i}.{name}"] = torch.tensor(array[-self.context :])  # a copy: rows of one series share their times
        write_safetensors(path / "history.safetensors", kept)
        write_safetensors(path / "model.safetensors", self.model_.state_dict())
        if isinstance(self.model_, SeriesModel):
            states.save(tuple(self._state()), path / "state.safetensors")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Forecaster:
        """What :meth:`save` wrote."""
        path = Path(path)
        if not (path / "forecaster.json").is_file():
            raise ValueError(f"{path} holds no forecaster: it has no forecaster.json")
        saved = read_json(path / "forecaster.json")
        arguments = saved["arguments"]
        for name in ("mixer", "model"):
            if isinstance(arguments[name], dict):
                arguments[name] = Spec.from_dict(arguments[name])
        self = cls(**{**arguments, "quantiles": tuple(arguments["quantiles"])})
        self._source, self.variates_, self.uneven_ = saved["source"], tuple(saved["variates"]), saved["uneven"]
        self.step_ = np.timedelta64(saved["step"], "ns") if saved["dated"] else saved["step"]
        kept, _ = read_safetensors(path / "history.safetensors")
        self.history_, self.scales_ = [], {}
        self._states = list(states.load(path / "state.safetensors")) if self.model is None else []
        for i, row in enumerate(saved["rows"]):
            key, scale = (row["series"], row["variate"]), Scale(np.array(row["mean"]), np.array(row["spread"]))
            stamps, times, values = (kept[f"{i}.{name}"].numpy() for name in ("stamps", "times", "values"))
            self.history_.append(Row(key, stamps.view("datetime64[ns]") if saved["dated"] else stamps, times, values, scale))
            self.scales_[key] = scale
        self.model_ = self._build()
        weights, _ = read_safetensors(path / "model.safetensors")
        self.model_.load_state_dict(weights)
        self.model_.eval()
        return self


def _frame(origins: list[tuple[Row, Any]], out: np.ndarray, variates: tuple[str, ...], step: Any, quantiles: Sequence[float]) -> Any:
    """Scaled forecasts (n, h, V, 1 + quantiles) as a long frame of values as they were read."""
    import pandas as pd

    h, names = out.shape[1], ["mean", *(f"q{level:g}" for level in quantiles)]
    pieces = []
    for (row, cutoff), forecast in zip(origins, out, strict=True):
        values = forecast * row.scale.spread[:, None] + row.scale.mean[:, None]
        times = cutoff + np.arange(1, h + 1) * step
        for v, variate in enumerate([row.key[1]] if row.key[1] else variates):
            columns = {name: values[:, v, k] for k, name in enumerate(names)}
            pieces.append(pd.DataFrame({"unique_id": row.key[0], "variate": variate, "cutoff": cutoff, "ds": times, **columns}))
    return pd.concat(pieces, ignore_index=True)
