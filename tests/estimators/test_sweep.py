"""Sweeps: what is searched, that settings are tried once, resumed and ranked, and the command that comes out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from statescan.cli import main
from statescan.estimators.sweep import Range, read_range, sweep

pytest.importorskip("optuna")


def _compare(calls: list[list[str]], stop_after: int = 100) -> Any:
    """A stand-in for the verb: accuracy falls with the distance of lr from 0.01, and by seed; d_model=3 is impossible."""

    def call(words: list[str]) -> Any:
        options = dict(word.removeprefix("--").split("=") for word in words)
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(words)
        if options["d_model"] == "3":
            raise ValueError("d_model must be even; got 3")
        accuracy = 0.9 - abs(float(options["lr"]) - 0.01) - 0.01 * int(options["first_seed"]) + 0.001 * int(options["d_model"])
        return SimpleNamespace(scores=[SimpleNamespace(label="M", accuracy={"test": accuracy})])

    return call


def test_all_combinations_of_values_then_the_best_command(tmp_path: Path) -> None:
    calls: list[list[str]] = []
    over = ["lr=0.01,0.1", "d_model=2,3,8"]
    with pytest.raises(KeyboardInterrupt, match="the same command does the rest"):
        sweep("compare", _compare(calls, 5), ["--steps=9"], over, seeds=2, run=str(tmp_path), quiet=True)
    found = sweep("compare", _compare(calls), ["--steps=9"], over, seeds=2, run=str(tmp_path), quiet=True)
    assert found.command == "statescan compare --steps=9 --lr=0.01 --d_model=8"
    assert [tried.setting for tried in found.tried[:4]] == [
        {"lr": lr, "d_model": d} for lr in ("0.01", "0.1") for d in ("8", "2")
    ]  # fmt: skip
    np.testing.assert_allclose(found.tried[0].values, [9.2, 10.2])
    assert "| 0.01 | 8 | 9.7 ± 0.5 |" in found.table()
    assert "failed: d_model must be even; got 3" in found.table()
    assert len(calls) == 4 * 2 + 2 + 1  # each once: a setting that fails does so at its first seed, and is tried again by the next call
    assert {"table.md", "plot.png", "study.db"} <= {p.name for p in tmp_path.iterdir()}
    again = sweep("compare", _compare(calls), ["--steps=9"], over, seeds=3, run=str(tmp_path), quiet=True)
    assert len(calls) == 11 + 4 + 2
    assert len(again.tried[0].values) == 3
    with pytest.raises(ValueError, match="holds another sweep"):
        sweep("compare", _compare(calls), ["--steps=8"], over, run=str(tmp_path), quiet=True)
    with pytest.raises(ValueError, match="sets --seed itself"):
        sweep("compare", _compare(calls), ["--steps=9"], ["seed=1,2"], run=str(tmp_path), quiet=True)


def test_the_data_are_what_options_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file or a folder, in one word or two; not the folder the command is called in, nor the sweep's own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("data/x.wav", "more.npz"):
        (tmp_path / name).write_bytes(b"one")
    calls: list[list[str]] = []

    def call(words: list[str]) -> Any:
        calls.append(words)
        return SimpleNamespace(scores=[SimpleNamespace(label="M", accuracy={"test": 0.5})])

    def again(*words: str) -> None:
        sweep("compare", call, words, ["lr=0.1,0.2"], run=str(tmp_path / "data" / "sweep"), quiet=True)

    monkeypatch.setattr("statescan.estimators.sweep._draw", lambda *arguments: None)

    words = ["data", "--steps", "9", "--of=more.npz"]
    again(*words)
    (tmp_path / "other").write_text("of another command")
    again(*words)
    assert len(calls) == 2
    for file in (tmp_path / "data" / "x.wav", tmp_path / "more.npz"):
        before = file.stat()
        file.write_bytes(b"two")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        with pytest.raises(ValueError, match=r"the data have changed since .*sweep was begun: put them back"):
            again(*words)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    again(*words)
    assert len(calls) == 2


def test_ranges_are_searched(tmp_path: Path) -> None:
    calls: list[list[str]] = []
    over = ["lr=1e-4..1:log", "d_model=4..8"]
    found = sweep("compare", _compare(calls), [], over, trials=12, run=str(tmp_path), quiet=True)
    rates = [float(word.split("=")[1]) for words in calls for word in words if word.startswith("--lr=")]
    assert all(1e-4 <= rate <= 1 for rate in rates)
    assert sum(rate < 0.01 for rate in rates) > 2
    assert found.tried[0].values[0] == min(tried.values[0] for tried in found.tried)
    assert read_range("layers=1..4") == ("layers", Range(1, 4, True, False))
    for bad, words in (("lr", "NAME=VALUE"), ("lr=1..a", "range of numbers"), ("lr=2..1", "must rise"), ("lr=0..1:log", "above 0")):
        with pytest.raises(ValueError, match=words):
            read_range(bad)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, 8)).astype(np.float32)
    np.savez(tmp_path / "d.npz", X=X, y=X.mean(1))
    words = ["sweep", "regress", str(tmp_path / "d.npz"), "--steps=3", "--layers", "1", "--mixer", "S4D", "--run", str(tmp_path / "s")]
    assert main([*words, "--over", "mixer.d_state=2,4", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "| mixer.d_state | validation loss |" in out
    assert "the best on the test part: r2" in out
    assert "statescan regress" in out
    first = next((tmp_path / "s" / "settings").glob("*/seed-0.json"))
    assert json.loads(first.read_text())["test"].keys() == {"r2", "rmse"}
    for bad, said in (
        (["--over", "depth=1,2"], "has no option --depth"),
        (["--over", "d_model=x,2"], "d_model must be"),
        (["--over", "lr=0.1", "--over", "lr=0.2"], "twice"),
    ):
        assert main([*words, *bad]) == 2
        assert said in capsys.readouterr().err
