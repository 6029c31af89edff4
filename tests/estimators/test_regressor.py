"""Regression and answers a position: they learn, stream, save, leave missing targets out, and the command works."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from statescan.cli import main
from statescan.estimators import SequenceClassifier, SequenceRegressor
from statescan.estimators.regressor import r2


def _small(kind: Any = SequenceRegressor, **changes: Any) -> Any:
    return kind(**{"mixer": "S4D", "d_model": 8, "layers": 1, "steps": 3, "lr": 1e-2, "dropout": 0.0, "batch_size": 16, **changes})


def _filtered(n: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(0)
    X = [rng.standard_normal(rng.integers(20, 31)) for _ in range(n)]
    return X, [100 + 10 * np.convolve(x, [0.5, 0.3, 0.2])[: len(x)] for x in X]


def test_one_answer_a_sequence_in_its_own_units() -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 12)) + rng.standard_normal((60, 1))
    y = np.stack([1000 + 50 * X.mean(1), -X[:, -1]], 1)
    model = _small(steps=120, stride=4).fit(X, y)
    assert model.predict(X).shape == (60, 2)
    assert model.score(X, y) > 0.7
    assert _small().fit(X, y[:, 0]).predict(X).shape == (60,)


def test_one_answer_a_position_with_missing_targets(tmp_path: Path) -> None:
    X, y = _filtered(40)
    holes = [np.where(np.arange(len(row)) % 5 == 2, np.nan, row) for row in y]
    model = _small(steps=80, per_step=True).fit(X, holes)
    assert model.score(X, y) > 0.8
    assert model.score(X, holes) == pytest.approx(model.score(X, y), abs=0.05)
    model.save(tmp_path)
    again = SequenceRegressor.load(tmp_path)
    for a, b, x in zip(again.predict(X), model.predict(X), X, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.shape == x.shape


@pytest.mark.parametrize(("stride", "low_layers", "by_frame"), [(1, 0, False), (4, 0, False), (4, 1, False), (4, 1, True)])
def test_a_stream_answers_for_each_position(stride: int, low_layers: int, by_frame: bool) -> None:
    X, y = _filtered(12)
    if by_frame:
        y = [row[::stride] for row in y]
    model = _small(stride=stride, low_layers=low_layers, per_step=True).fit(X, y)
    x, whole = X[0][:22], model.predict([X[0][:22]])[0]
    live = model.stream()
    found = [answer for value in x for answer in live.push([value])]
    assert len(found) == len(x) // stride
    np.testing.assert_allclose(np.concatenate([*found, live.now()])[:, 0], whole, rtol=1e-5)
    assert len(whole) == (6 if by_frame else 22)
    np.testing.assert_allclose(model.predict([X[1], X[0][:22]])[1], whole, rtol=1e-5)  # beside a longer one


def test_tagging() -> None:
    X, _ = _filtered(40)
    y = [np.where(x > 0, "up", "down") for x in X]
    holes = [np.where(np.arange(len(row)) % 4 == 1, "", row) for row in y]
    model = _small(SequenceClassifier, steps=60, per_step=True).fit(X, holes)
    assert model.classes_.tolist() == ["down", "up"]
    assert model.score(X, y) > 0.9
    assert model.predict_proba(np.zeros((2, 5))).shape == (2, 5, 2)


def test_r2() -> None:
    right = np.array([[1.0, 5], [2, 5], [np.nan, 5]])
    assert r2(right, np.array([[1.0, 5], [2, 5], [9, 5]])) == 1
    assert r2(right, np.array([[1.5, 5], [1.5, 5], [9, 4]])) == 0
    with warnings.catch_warnings():  # of a mean of nothing
        warnings.simplefilter("error")
        assert r2(np.array([[1.0, np.nan], [2, np.nan]]), np.array([[1.0, 7], [2, 8]])) == 1
        assert r2(np.array([[1.0, np.nan], [2, np.nan]]), np.array([[1.5, 7], [1.5, 8]])) == 0


def test_what_is_refused() -> None:
    X, y = _filtered(4)
    for kind, options, data, words in (
        (SequenceRegressor, {}, (X, ["a"] * 4), "targets must be numbers"),
        (SequenceRegressor, {}, (X, [np.inf, 1, 2, 3]), "infinite"),
        (SequenceRegressor, {}, (X, [np.nan] * 4), "NaN throughout"),
        (SequenceRegressor, {}, (np.ones((4, 5)), [1, 2, 3, 4]), "every value of every sequence is 1"),
        (SequenceRegressor, {"per_step": True}, (X, [row[1:] for row in y]), "a target for each position"),
        (SequenceRegressor, {"per_step": True, "augment": True}, (X, y), "leave it out with per_step"),
        (SequenceRegressor, {"low_layers": -1}, (X, y), "low_layers must be 0 or more"),
        (SequenceClassifier, {}, (X, [0.5, 1, 2, 3]), "SequenceRegressor learns numbers"),
        (SequenceClassifier, {}, (X, ["a", "", "b", "a"]), "sequence 1 has no label"),
        (SequenceClassifier, {"per_step": True}, (X, [[""] * len(x) for x in X]), "there is no label"),
    ):
        with pytest.raises(ValueError, match=words):
            _small(kind, **options).fit(*data)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((30, 16)).astype(np.float32)
    X[0, 3] = np.nan
    np.savez(tmp_path / "one.npz", X=X, y=np.nanmean(X, 1))
    np.savez(tmp_path / "each.npz", X=X, y=np.cumsum(np.nan_to_num(X), 1))
    np.savez(tmp_path / "tags.npz", X=X, y=(X > 0).astype(int))
    small = ["--mixer=S4D", "--d_model=8", "--layers=1", "--steps=4", "--quiet", "--stride=4"]
    for name, more, words in (
        ("one", ["regress"], "| ridge on all values |"),
        ("each", ["regress", "--per_step"], "| ridge on the last 16 values |"),
        ("tags", ["classify", "--per_step"], "| most frequent class |"),
    ):
        run = tmp_path / name
        assert main([more[0], str(tmp_path / f"{name}.npz"), *more[1:], *small, f"--run={run}"]) == 0
        assert words in capsys.readouterr().out
        assert {"table.md", "scores.json"} <= {p.name for p in run.iterdir()}
        assert (run / ("confusion.png" if more[0] == "classify" else "plot.png")).stat().st_size > 1000

    (tmp_path / "x.csv").write_text("".join(f"{v}\n" for v in X[1, :10]))
    assert main(["stream", str(tmp_path / "each"), str(tmp_path / "x.csv")]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    whole = SequenceRegressor.load(tmp_path / "each").predict([X[1, :10]])[0]
    assert [int(line[0]) for line in lines] == list(range(1, 11))
    np.testing.assert_allclose([float(line[1]) for line in lines], whole, rtol=1e-4)

    # a run that has ended is continued to the same table, with its own options; not with other data
    table = (tmp_path / "one" / "table.md").read_text()
    assert main(["regress", "--resume", str(tmp_path / "one"), "--quiet"]) == 0
    assert _without_seconds(capsys.readouterr().out.split("\n\n")[0]) == _without_seconds(table.strip())
    np.savez(tmp_path / "one.npz", X=X * 2, y=np.nanmean(X, 1))
    assert main(["regress", "--resume", str(tmp_path / "one"), "--quiet"]) == 2
    assert "the data have changed since" in capsys.readouterr().err


def _without_seconds(table: str) -> list[list[str]]:
    rows = [line.split("|") for line in table.splitlines()]
    return [row[:3] + row[4:] for row in rows]
