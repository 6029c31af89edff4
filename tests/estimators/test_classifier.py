"""Classification: it learns, it streams, it saves, it obeys scikit-learn's manners, and the commands work."""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from statescan import state as states
from statescan.cli import main
from statescan.estimators import Forecaster, SequenceClassifier
from statescan.procedures import fit
from statescan.spec import Spec
from tests.data.test_labelled import write_wav


def _waves(n: int, seed: int) -> tuple[list[np.ndarray], list[str]]:
    rng = np.random.default_rng(seed)
    X, y = [], []
    for _ in range(n):
        kind, length = int(rng.integers(3)), int(rng.integers(33, 60))
        X.append(np.sin(np.arange(length) * (0.2, 0.5, 0.9)[kind] + rng.uniform(0, 6)) + 0.3 * rng.standard_normal(length))
        y.append("abc"[kind])
    return X, y


def _small(**changes: object) -> SequenceClassifier:
    return SequenceClassifier(**{"d_model": 12, "layers": 1, "stride": 4, "steps": 60, "lr": 1e-2, "batch_size": 16, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def fitted() -> SequenceClassifier:
    return _small().fit(*_waves(120, 0))


def test_it_learns_and_is_the_same_again(fitted: SequenceClassifier) -> None:
    X, y = _waves(60, 1)
    assert fitted.score(X, y) > 0.9
    assert fitted.classes_.tolist() == ["a", "b", "c"]
    again = _small().fit(*_waves(120, 0))
    np.testing.assert_array_equal(again.predict_proba(X), fitted.predict_proba(X))


def test_a_sequence_is_classified_alike_alone_and_among_longer_ones(fitted: SequenceClassifier) -> None:
    X, _ = _waves(20, 2)
    together = fitted.predict_proba(X)
    np.testing.assert_allclose(np.concatenate([fitted.predict_proba([x]) for x in X]), together, atol=1e-6)


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_a_stream_gives_the_answer_for_the_whole(pool: str, tmp_path: Path) -> None:
    classifier = _small(pool=pool, steps=4).fit(*_waves(40, 0))
    (x,), _ = _waves(1, 3)
    live = classifier.stream()
    for value in x[:17]:
        for _ in live.push([value]):
            pass
    states.save(live.state, tmp_path / "s")
    live = classifier.stream(states.load(tmp_path / "s"))  # type: ignore[arg-type]
    count = len(list(live.push(x[17:])))
    assert count == len(x) // 4 - 17 // 4
    np.testing.assert_allclose(live.now(), classifier.predict_proba([x])[0], atol=1e-6)


def test_missing_values_and_channels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, 12, 2))
    y = (X[:, :, 1].mean(1) > 0).astype(int)
    X[:, ::3, 0] = np.nan
    classifier = _small(stride=1, steps=120, dropout=0.0).fit(X, y)
    assert classifier.score(X, y) > 0.8
    classifier.save(tmp_path)
    np.testing.assert_array_equal(SequenceClassifier.load(tmp_path).predict_proba(X), classifier.predict_proba(X))


def test_scales_are_sums_in_double_precision() -> None:
    """A large value first: single precision drops every one that follows."""
    X = np.ones((2, 10_000, 2), np.float32)
    X[0, 0], X[1, :, 1] = 2.0**24, -1
    classifier = _small(stride=1000, steps=1).fit(X, ["a", "b"])
    every = X.reshape(-1, 2).astype(np.float64)
    np.testing.assert_allclose(classifier.mean_, every.mean(0), rtol=1e-6)
    np.testing.assert_allclose(classifier.spread_, every.std(0), rtol=1e-6)
    assert classifier.mean_.dtype == classifier.spread_.dtype == np.float32


def test_the_manners() -> None:
    classifier = _small(layers=2)
    assert SequenceClassifier(**classifier.get_params()).get_params() == classifier.get_params()
    assert classifier.set_params(lr=0.5).lr == 0.5
    with pytest.raises(ValueError, match="no argument 'depth'"):
        classifier.set_params(depth=3)
    with pytest.raises(ValueError, match="not fitted yet"):
        classifier.predict([np.zeros(4)])
    X, y = _waves(9, 0)
    uneven = [np.zeros((3, 2)), np.zeros(3)]
    for bad, words in (
        ((X, y[:5]), "one target a sequence"),
        ((X, ["a"] * 9), "all labels are 'a'"),
        ((uneven, ["a", "b"]), "channels"),
        (([np.full(3, np.nan)] * 2, ["a", "b"]), "no observed value"),
    ):
        with pytest.raises(ValueError, match=words):
            _small().fit(*bad)
    with pytest.raises(ValueError, match="looks ahead"):
        _small(mixer=Spec("Bidirectional", mixer=Spec("S4D", d_state=4)), steps=1).fit(X, y).stream()


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = _waves(30, 0)
    for i, (x, label) in enumerate(zip(X, y, strict=True)):
        write_wav(tmp_path / "sound" / f"{label}_{i}.wav", x / 3)
    run = str(tmp_path / "run")
    small = ["--d_model=12", "--layers=1", "--stride=4", "--steps=3", "--quiet=true"]
    assert main(["classify", str(tmp_path / "sound"), "--label=^(.)_", "--test=_[0-5].wav", *small, f"--run={run}"]) == 0
    out = capsys.readouterr().out
    assert "| Mamba |" in out
    assert "| LSTM |" in out
    assert "the 6 names that fit" in out
    assert {"confusion.png", "classifier.json", "table.md"} <= {p.name for p in Path(run).iterdir()}

    whole = SequenceClassifier.load(run)
    file = tmp_path / "sound" / f"{y[0]}_0.wav"
    assert main(["stream", run, str(file)]) == 0
    last = capsys.readouterr().out.splitlines()[-1].split("\t")
    (samples,) = [s for s, n in zip(*_read(tmp_path / "sound"), strict=True) if n == file.name]
    probabilities = whole.predict_proba([samples])[0]
    assert last == [str(len(samples)), str(whole.classes_[probabilities.argmax()]), f"{probabilities.max():.4f}"]

    # the same through a pipe, in two runs with the state between them
    kept = str(tmp_path / "state")
    for part in (samples[:13], samples[13:]):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{float(v[0])!r}\n" for v in part)))
        assert main(["stream", run, "-", "--state", kept]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split("\t")[1:] == last[1:]

    for arguments, words in (
        (["stream", str(tmp_path)], "holds no classifier, regressor or forecaster"),
        (["stream", run, "nothing.csv"], "no file nothing.csv"),
        (["classify", str(tmp_path / "sound"), "--test=zzz", f"--run={run}2"], "fits no name"),
    ):
        assert main(arguments) == 2
        assert words in capsys.readouterr().err


def test_what_the_commands_refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def folder(name: str, **files: bytes | np.ndarray) -> str:
        for file, content in files.items():
            path = tmp_path / name / f"{file}.wav"
            if isinstance(content, bytes):
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
            else:
                write_wav(path, content)
        (tmp_path / name).mkdir(exist_ok=True)
        return str(tmp_path / name)

    def arrays(name: str, **held: np.ndarray) -> str:
        np.savez(tmp_path / f"{name}.npz", **held)
        return str(tmp_path / f"{name}.npz")

    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((6, 5)), np.array([0, 1, 0, 1, 0, 1])
    (tmp_path / "text.npz").write_text("no arrays")
    for data, words in (
        (folder("corrupt", a=b"RIFFxxxx"), "is not a PCM wav file"),
        (folder("nothing", a=b""), "is not a PCM wav file"),
        (folder("silent", a=np.zeros((0, 1))), "it is cut short or empty"),
        (folder("channels", a=np.zeros((9, 1)), b=np.zeros((9, 2))), "give all the same number"),
        (folder("empty"), "holds no .wav file"),
        (arrays("no_y", X=X), "has no array 'y'"),
        (arrays("no_X", y=y), "has no array 'X'"),
        (arrays("pickled", X=np.array([{}, {}]), y=y[:2]), "it holds pickled objects, which are never loaded"),
        (str(tmp_path / "text.npz"), "cannot be read as arrays"),
        (arrays("constant", X=np.full((6, 5), 3.0), y=y), "every value of every sequence is 3"),
        (arrays("alone", X=X, y=np.zeros(6)), "a classifier needs at least two classes"),
        (arrays("infinite", X=np.where(X.max() == X, np.inf, X), y=y), "infinite"),
        (arrays("unseen", X=np.full((6, 5), np.nan), y=y), "channel 0 has no observed value in any sequence"),
    ):
        assert main(["classify", data, "--test=#[01]$|b.wav", "--steps=1", "--quiet", f"--run={tmp_path / 'run' / Path(data).name}"]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    plain, each = arrays("plain", X=X, y=y), arrays("each", X=X, y=np.stack([y] * 5, 1))
    for verb, data, option, words in (
        ("classify", plain, "--d_model=0", "d_model must be greater than 0"),
        ("classify", plain, "--dropout=1", "dropout must lie in [0, 1)"),
        ("classify", plain, "--per_step", "--per_step needs a target for each position, and these data have one for each sequence"),
        ("regress", plain, "--per_step", "--per_step needs a target for each position, and these data have one for each sequence"),
        ("classify", each, "--steps=1", "these data have a class for each position: add --per_step"),
        ("classify", arrays("nan", X=X, y=np.where(y, np.nan, y)), "--steps=1", "the class of sequence 1 is NaN"),
        (
            "regress",
            arrays("unknown", X=X, y=np.where(np.arange(6) < 2, np.nan, y)),
            "--test=#[01]$",
            "no target of the test part is known",
        ),
        ("classify", plain, "--mixer.d_state=0", "d_state must be positive; got 0"),
        ("classify", plain, "--test=#[0]$|(", "is neither a file, a folder nor a regular expression"),
    ):
        assert main([verb, data, "--quiet", "--steps=1", "--floor=false", f"--run={tmp_path / 'refused'}", option]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert not (tmp_path / "refused").exists()  # nothing was begun, so the name is free
    assert main(["classify", "--resume", str(tmp_path / "empty")]) == 2
    assert "is not a run folder" in capsys.readouterr().err


def test_a_fit_that_was_stopped_within_an_epoch_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With dropout, augmentation and sequences of unequal length."""
    X, y = _waves(40, 0)
    for i, (x, label) in enumerate(zip(X, y, strict=True)):
        write_wav(tmp_path / "sound" / f"{label}_{i}.wav", x / 3)
    small = ["--mixer=S4D", "--d_model=8", "--layers=1", "--stride=4", "--steps=9", "--batch_size=8", "--augment=true", "--dropout=0.3"]
    small += ["--label=^(.)_", "--floor=false", "--plot=false", "--quiet"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["classify", str(tmp_path / "sound"), *small, f"--run={whole}"]) == 0
    real = fit.take_step

    def stopping(model: Any, optimizer: Any, loss_of: Any, step: int, schedule: Any) -> float:
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(model, optimizer, loss_of, step, schedule)

    monkeypatch.setattr(fit, "take_step", stopping)
    assert main(["classify", str(tmp_path / "sound"), *small, f"--run={parts}"]) != 0
    assert f"stopped after step 6; continue with: statescan classify --resume {parts}" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(["classify", f"--resume={parts}", "--quiet"]) == 0
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    one, two = (json.loads((run / "scores.json").read_text()) for run in (whole, parts))
    assert {**one, "seconds": 0} == {**two, "seconds": 0}


def test_a_forecaster_streams(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    forecaster = Forecaster(3, context=12, d_model=8, layers=1, steps=2).fit(np.cumsum(rng.standard_normal(80)))
    forecaster.save(tmp_path / "f")
    (tmp_path / "new.csv").write_text("y\n" + "".join(f"{v}\n" for v in range(4)))
    assert main(["stream", str(tmp_path / "f"), str(tmp_path / "new.csv"), "--state", str(tmp_path / "g")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [float(line.split("\t")[2]) for line in lines] == [81, 82, 83, 84]
    resumed = Forecaster.load(tmp_path / "g")
    assert float(lines[-1].split("\t")[3]) == pytest.approx(resumed.predict(1)["mean"].iloc[0], rel=1e-5)


def _read(folder: Path) -> tuple[list[np.ndarray], list[str]]:
    from statescan.data.labelled import read_labelled

    found = read_labelled(folder, label="^(.)_")
    return list(found.sequences), list(found.names)
