"""Forecasting: the model under the contract's laws, targets by time, updates, files, floors and the command."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from statescan.cli import main
from statescan.data.series import read_series
from statescan.estimators import Forecaster
from statescan.estimators.floors import Ridge, against_floors, find_season, last_value, seasonal_value
from statescan.estimators.rows import Row, Scale, make_rows, windows
from statescan.heads.horizon import SeriesModel
from statescan.spec import Spec
from statescan.timeline import Timeline

DATA = Path(os.environ.get("STATESCAN_DATA", Path(__file__).parents[3] / "shared" / "data"))


def _frame(n: int = 260, uneven: bool = False) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    t = np.cumsum(rng.exponential(1.0, n)) if uneven else np.arange(n, dtype=float)
    frame = pd.DataFrame({"time": t, "a": np.sin(t / 3) + 0.05 * rng.standard_normal(n), "b": 9 + 4 * np.cos(t / 5)})
    frame.loc[40:44, "a"] = np.nan
    return frame


def _small(**changes: object) -> Forecaster:
    return Forecaster(**{"horizon": 6, "context": 24, "d_model": 8, "layers": 1, "steps": 25, "lr": 2e-2, "batch_size": 8, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def fitted() -> Forecaster:
    return _small().fit(_frame(), test_size=40)


# -- the model ------------------------------------------------------------------------------------------------------------------


def _model() -> tuple[SeriesModel, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = SeriesModel(2, 3, d_model=8, layers="MF", uneven=True).double()
    torch.nn.init.normal_(model.head.weight)
    values = torch.randn(2, 11, 2, dtype=torch.float64)
    values[0, 3:6, 0] = values[1, 0] = torch.nan
    return model, values, torch.rand(2, 11, dtype=torch.float64) + 0.5


def test_whole_equals_chunks_equals_steps() -> None:
    model, values, interval = _model()
    line = Timeline(interval=interval)
    whole = model(values, line)
    first, state = model(values[:, :4], line.slice(0, 4), return_state=True)
    torch.testing.assert_close(torch.cat([first, model(values[:, 4:], line.slice(4, 11), state=state)], 1), whole)
    state, steps = model.init_state(2), []
    for t in range(11):
        out, state = model.step(values[:, t], state, line.at(t))
        steps.append(out)
    torch.testing.assert_close(torch.stack(steps, 1), whole)


def test_what_is_masked_does_not_exist_and_a_reset_begins_anew() -> None:
    model, values, interval = _model()
    mask, reset = torch.ones(2, 11, dtype=torch.bool), torch.zeros(2, 11, dtype=torch.bool)
    mask[:, 5], reset[:, 7] = False, True
    poisoned = values.clone()
    poisoned[:, 5] = 1e30
    out = model(poisoned, Timeline(reset, mask, interval))
    kept = [0, 1, 2, 3, 4, 6]
    torch.testing.assert_close(out[:, kept], model(values[:, kept], Timeline(interval=interval[:, kept])))
    torch.testing.assert_close(out[:, 7:], model(values[:, 7:], Timeline(interval=interval[:, 7:])))
    assert not out[:, 5].any()


def test_an_untrained_model_repeats_the_last_value_observed() -> None:
    model = SeriesModel(1, 4, d_model=8, layers="M")
    out = model(torch.tensor([[[2.0], [torch.nan], [5.0]]]))
    torch.testing.assert_close(out[0, :, 0, 0, 0], torch.tensor([2.0, 2.0, 5.0]))


def test_the_loss_passes_over_what_was_not_observed_and_finds_quantiles() -> None:
    model = SeriesModel(1, 1, quantiles=(0.1, 0.9), d_model=4, layers="M")
    draws = torch.randn(2_000, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    draws[::2] = torch.nan
    guess = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.Adam([guess], lr=0.02)
    for _ in range(300):
        descent.zero_grad()
        model.loss(guess.expand(2_000, 1, 1, 3), draws).backward()
        descent.step()
    seen = draws[1::2].flatten()
    wanted = torch.stack([seen.mean(), seen.quantile(0.1), seen.quantile(0.9)])
    torch.testing.assert_close(guess.detach(), wanted, atol=0.05, rtol=0)


# -- rows and floors ------------------------------------------------------------------------------------------------------------


def test_targets_are_found_by_time() -> None:
    times = np.array([0.0, 1.0, 2.1, 3.9, 5.0, 6.7])
    row = Row(("s", "y"), times, times, np.arange(6.0)[:, None], Scale(np.zeros(1), np.ones(1)))
    found = row.targets(np.array([0, 2]), 4, 6)[..., 0]
    np.testing.assert_array_equal(found, [[1, 2, np.nan, 3], [np.nan, 3, 4, np.nan]])
    np.testing.assert_array_equal(row.targets(np.array([0]), 4, 3)[0, :, 0], [1, 2, np.nan, np.nan])


def test_windows_of_short_rows_are_padded_on_the_left() -> None:
    row = make_rows(read_series(np.arange(5.0)), joint=False)[0]
    values, line = windows([row, row], [5, 2], 4, False)
    assert line is not None
    assert line.mask.tolist() == [[True] * 4, [False, False, True, True]]  # type: ignore[union-attr]
    assert values[1].isnan().squeeze(1).tolist() == [True, True, False, False]


def test_the_floors() -> None:
    window = np.arange(12.0).reshape(2, 6)
    np.testing.assert_array_equal(last_value(window, 2), [[5, 5], [11, 11]])
    times = np.array([0.0, 1.1, 2, 3, 4.9, 6.2])  # the value at time 4 is that of 3
    row = Row(("s", "y"), times, times, np.arange(6.0)[:, None], Scale(np.zeros(1), np.ones(1)))
    np.testing.assert_array_equal(seasonal_value(row, row.values, 6, 5, 3)[:, 0], [3, 4, 5, 3, 4])
    x = np.sin(np.arange(300) * 2 * np.pi / 17)
    assert find_season(x, 60) == 17
    assert find_season(np.arange(50.0), 20) == 1
    past = np.stack([x[i : i + 8] for i in range(280)])
    ahead = np.stack([x[i + 8 : i + 11] for i in range(280)])
    holes = np.where(np.arange(280)[:, None] % 3 == 0, np.nan, ahead)
    np.testing.assert_allclose(Ridge(past, ahead, 1e-9)(past), ahead, atol=1e-5)  # a sine obeys a linear rule
    np.testing.assert_allclose(Ridge(past, holes, 1e-9)(past), ahead, atol=1e-5)


# -- the estimator --------------------------------------------------------------------------------------------------------------


def test_it_learns_and_forecasts_in_the_units_it_was_given(fitted: Forecaster) -> None:
    curve = fitted.fitted_.curve
    assert curve[-1][2] < 0.8 * curve[0][2]
    frame = fitted.predict(4)
    assert list(frame.columns) == ["unique_id", "variate", "ds", "mean", "q0.1", "q0.5", "q0.9"]
    assert frame.ds.tolist()[:4] == [260, 261, 262, 263]
    assert frame[frame.variate == "b"]["mean"].between(3, 15).all()
    assert frame.equals(_small().fit(_frame(), test_size=40).predict(4))  # the same seed, the same bits


def test_updates_equal_reading_it_all(fitted: Forecaster, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    live = Forecaster.load(tmp_path)
    assert live.predict().equals(fitted.predict())
    more = pd.DataFrame({"time": [260.0, 261, 264], "a": [0.1, np.nan, 0.3], "b": [8.0, 9, 10]})
    for i in range(3):  # the first alone, for reading one row needs no neighbours
        live.update(more[i : i + 1])
    every = pd.concat([_frame(), more])
    rows = make_rows(read_series(every).filled(), False, fitted.scales_)
    values, line = windows(rows, [265, 265], 24 + 5, False)
    h, last, _ = fitted.model_.read(values, line)
    wanted = fitted.model_.forecast(h[:, -1], last[:, -1]).detach().numpy()[..., 0, 0]
    got = live.predict()
    for v, row in enumerate(rows):
        mine = got[got.variate == row.key[1]]
        np.testing.assert_allclose(mine["mean"], wanted[v] * row.scale.spread + row.scale.mean, rtol=1e-4, atol=1e-5)
        assert mine.ds.iloc[0] == 265
    with pytest.raises(ValueError, match="known up to 264"):
        live.update(more[:1])


def test_cross_validation_and_the_score(fitted: Forecaster) -> None:
    frame = fitted.cross_validation(n_windows=2)
    assert sorted(set(frame.cutoff)) == [247, 253]
    truth = _frame().set_index("time")
    np.testing.assert_allclose(frame["y"], [truth.loc[ds, v] for ds, v in zip(frame.ds, frame.variate, strict=True)])
    scores = fitted.score(40, 26)
    assert set(scores) > {"Mamba", "last value", "ridge"}
    assert scores["ridge"]["mse"] < scores["last value"]["mse"]


def test_uneven_times_and_joint_variates() -> None:
    forecaster = _small(joint=True, steps=3).fit(_frame(uneven=True))
    assert forecaster.uneven_
    assert forecaster.model_.variates == 2
    assert np.isfinite(forecaster.predict()["mean"]).all()


def test_impossible_requests(fitted: Forecaster) -> None:
    with pytest.raises(ValueError, match=r"h must lie in 1..6"):
        fitted.predict(7)
    with pytest.raises(ValueError, match="not fitted yet"):
        _small().predict()
    with pytest.raises(ValueError, match="the array has 20 positions: too few"):
        _small(horizon=15).fit(np.arange(20.0))
    with pytest.raises(ValueError, match="no argument 'horizons'"):
        _small().set_params(horizons=3)
    with pytest.raises(ValueError, match="evenly spaced"):
        fitted.predict(data=_frame(uneven=True))


# -- the command ----------------------------------------------------------------------------------------------------------------


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _frame(200).to_csv(tmp_path / "x.csv", index=False)
    small = ["--horizon=6", "--context=24", "--d_model=8", "--layers=1", "--steps=2", "--batch_size=4", "--quiet=true"]
    run = tmp_path / "run"
    assert main(["forecast", str(tmp_path / "x.csv"), *small, f"--run={run}"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n| {name} |" in shown for name in ("Mamba", "last value", "ridge", "LSTM", "transformer"))
    assert "| mse of a |" in shown
    assert {"forecast.csv", "plot.png", "table.md", "forecaster.json", "model.safetensors"} <= {p.name for p in run.iterdir()}
    assert len(pd.read_csv(run / "forecast.csv")) == 12
    assert len(Forecaster.load(run).predict()) == 12
    assert main(["forecast", str(tmp_path / "x.csv"), *small, f"--run={run}"]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert main(["forecast", str(tmp_path / "y.csv"), f"--run={run}2"]) == 2
    assert "did you mean 'x.csv'" in capsys.readouterr().err
    assert not Path(f"{run}2").exists()
    changed = _frame(200)
    changed.loc[7, "a"] += 1
    changed.to_csv(tmp_path / "x.csv", index=False)
    assert main(["forecast", f"--resume={run}"]) == 2
    assert "the data have changed since" in capsys.readouterr().err


WRONG = {
    "": "is empty",
    "t,a\n": "has no rows",
    "date,a\n" + "".join(f"{i},5\n" for i in range(60)): "a is 5 in every row",
    "date,a\n" + "".join(f"{i},\n" for i in range(60)): "a has no value in any row",
    "date,a\n" + "".join(f"{i},{i % 7}\n" for i in range(12)): "12 positions: too few to learn to forecast 6 ahead",
    "date,a\n" + "".join(f"{i},{i % 7 if i < 45 else 'nan'}\n" for i in range(60)): "the test part, 12 positions, has no observed value",
    "date,a\n" + "".join(f"{i},{i % 7 if i > 45 else 'inf'}\n" for i in range(60)): "no observed value in the part that is trained on",
    "date,a\n" + "".join(f"{i},{i % 7 if i != 3 else 'x'}\n" for i in range(60)): "column 'a' holds numbers, but 'x' in data row 4",
}


@pytest.mark.parametrize("text", WRONG)
def test_each_mistake_is_one_line_and_leaves_no_run(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.csv").write_text(text)
    assert main(["forecast", str(tmp_path / "x.csv"), "--horizon=6", f"--run={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert WRONG[text] in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--stride=0", "stride must be greater than 0; got 0"),
        ("--rows=-3", "rows must be greater than 0; got -3"),
        ("--season=0", "season must be greater than 0; got 0"),
        ("--quantiles=[0.9,0.1]", "quantiles must be levels between 0 and 1, rising; got (0.9, 0.1)"),
        ("--steps=0", "steps must be greater than 0; got 0"),
        ("--mixer.d_state=0", "d_state must be positive; got 0"),
    ],
)
def test_each_wrong_option_is_one_line_and_leaves_no_run(
    option: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _frame(80).to_csv(tmp_path / "x.csv", index=False)
    small = ["--horizon=6", "--context=12", "--d_model=4", "--layers=1", "--steps=1", "--floor=false", "--plot=false"]
    assert main(["forecast", str(tmp_path / "x.csv"), *small, option, f"--run={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert words in said
    assert not (tmp_path / "run").exists()


# -- published forecasters ------------------------------------------------------------------------------------------------------

S_MAMBA = Spec("SMamba", d_model=8, d_state=2, n_layers=1)
SPACETIME = Spec("SpaceTime", d_model=8, d_state=5, n_kernels=4, most=8)


def _published(model: Spec[Any], **changes: object) -> Forecaster:
    given = {"horizon": 6, "context": 24, "model": model, "steps": 4, "lr": 1e-2, "batch_size": 8}
    return Forecaster(**{**given, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(("model", "together"), [(S_MAMBA, True), (SPACETIME, False)])
def test_a_published_forecaster_is_fitted_judged_and_saved_like_any_other(model: Spec[Any], together: bool, tmp_path: Path) -> None:
    frame = _frame()
    frame.loc[100:150, ["a", "b"]] = np.nan  # whole windows without an observation
    forecaster = _published(model).fit(frame, test_size=40)
    assert forecaster.together == together
    assert list(forecaster.score(40, 26, season=19)) == [model.name, "last value", "last season (19)", "ridge"]
    ahead = forecaster.predict()
    assert list(ahead.columns) == ["unique_id", "variate", "ds", "mean"]
    assert np.isfinite(ahead["mean"]).all()
    forecaster.save(tmp_path)
    again = Forecaster.load(tmp_path)
    assert again.predict(3).equals(forecaster.predict(3))
    assert again.predict(data=frame).equals(forecaster.predict(data=frame))
    with pytest.raises(ValueError, match="keeps no state"):
        again.update(frame[:1])
    with pytest.raises(ValueError, match="forecasts means"):
        again.predict_quantiles()


def test_a_window_without_gaps_is_what_a_published_forecaster_reads() -> None:
    forecaster = _published(S_MAMBA)
    forecaster.variates_ = ("a", "b")
    model = forecaster._build()
    nan = torch.nan
    values = torch.tensor([[[nan, nan], [2.0, nan], [nan, nan], [5.0, nan]]])
    window, last, state = model.read(values)
    assert window[0, 0].tolist() == [[2, 0], [2, 0], [2, 0], [5, 0]]
    assert last[0, -1].tolist() == [5, 0]
    assert state is None


def test_what_a_published_forecaster_cannot_do_is_said_before_a_run_begins() -> None:
    cases = [
        (_published(S_MAMBA, d_model=32), "d_model is of the network around a mixer"),
        (_published(S_MAMBA, mixer="S4D"), "mixer is of the network around a mixer"),
        (_published(S_MAMBA, quantiles=(0.5,)), "SMamba forecasts means"),
        (_published(Spec("Mamba")), "Mamba is no forecaster of windows: model must be SMamba, SpaceTime"),
        (_published(Spec("SMamba", length=96)), "SMamba has length=96 where this forecast needs 24"),
        (_published(Spec("SpaceTime")), "longer than the delay line, 64 positions; got 24"),
    ]
    for forecaster, message in cases:
        with pytest.raises(ValueError, match=message):
            forecaster.fit(_frame())
    with pytest.raises(ValueError, match="SMamba reads evenly spaced windows"):
        _published(S_MAMBA).fit(_frame(uneven=True))


def test_a_stopped_run_of_a_published_forecaster_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the options it began with; what errors are measured on may change."""
    _frame(120).to_csv(tmp_path / "x.csv", index=False)
    options = ["--horizon=6", "--context=24", "--steps=5", "--batch_size=4", "--floor=false", "--stride=3", "--plot=false", "--quiet=true"]
    options += ["--model=SMamba", "--model.d_model=8", "--model.d_state=2", "--model.n_layers=1"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["forecast", str(tmp_path / "x.csv"), *options, f"--run={whole}"]) == 0
    real = Forecaster._window_loss

    def stopping(self: Forecaster, rows: list[Row], ends: list[int], step: int) -> torch.Tensor:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, rows, ends, step)

    monkeypatch.setattr(Forecaster, "_window_loss", stopping)
    assert main(["forecast", str(tmp_path / "x.csv"), *options, f"--run={parts}"]) != 0
    assert f"stopped after step 3; continue with: statescan forecast --resume {parts}" in capsys.readouterr().err
    assert not (parts / "forecast.csv").exists()
    monkeypatch.undo()
    assert main(["forecast", f"--resume={parts}", "--quiet=true"]) == 0
    for name in ("model.safetensors", "forecast.csv", "errors.json"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes(), name
    assert set(json.loads((parts / "errors.json").read_text())) == {"SMamba", "last value", "ridge"}
    assert main(["forecast", f"--resume={parts}", "--stride=1", "--quiet=true"]) == 0
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert json.loads((parts / "errors.json").read_text()) != json.loads((whole / "errors.json").read_text())


@pytest.mark.full
def test_the_floors_of_the_shared_protocol_are_the_known_ones() -> None:
    """Of ETTh1 and ETTh2, 96 hours ahead, all variates from windows of 96: squared and absolute errors, measured elsewhere."""
    known = {
        "ETTh1.csv": {"last value": (1.294, 0.713), "last season (24)": (0.512, 0.433), "ridge": (0.383, 0.392)},
        "ETTh2.csv": {"last value": (0.432, 0.422), "last season (24)": (0.391, 0.380), "ridge": (0.289, 0.338)},
    }
    for name, floors in known.items():
        file = DATA / name
        if not file.is_file():
            pytest.skip(f"needs {name} in {DATA} (or STATESCAN_DATA)")
        panel = read_series(file).filled()
        panel = panel._replace(series=tuple(series.slice(0, 14_400) for series in panel.series))
        rows = make_rows(panel, True, train=8_640)
        origins = [(0, end) for end in range(11_520, 14_400 - 96 + 1)]
        errors = against_floors("none", np.zeros((len(origins), 96, 7)), rows, origins, panel.variates, 96, 2_880, 24)
        for floor, (mse, mae) in floors.items():
            assert (round(errors[floor]["mse"], 3), round(errors[floor]["mae"], 3)) == (mse, mae)
