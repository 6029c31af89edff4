"""Recorded runs: what each asks of its command is something that the command takes; the heavy part is left out."""

from __future__ import annotations

import inspect
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from statescan.runs import ett, follower, long_range, loudness, repeat_previous, sashimi, spoken_digits

RUNS = {
    "ett.s_mamba": (ett, "forecast", lambda tmp: ett.s_mamba("x.csv", run=tmp)),
    "ett.spacetime": (ett, "forecast", lambda tmp: ett.spacetime("x.csv", run=tmp)),
    "follower": (follower, "forecast", lambda tmp: follower.s_mamba(run=tmp)),
    "list_ops": (long_range, "compare", lambda tmp: long_range.list_ops(run=tmp)),
    "list_ops_pretrained": (long_range, "compare", lambda tmp: long_range.list_ops_pretrained(run=tmp)),
    "pathfinder": (long_range, "compare", lambda tmp: long_range.pathfinder(run=tmp)),
    "repeat_previous": (repeat_previous, "control", lambda tmp: repeat_previous.s5(run=tmp)),
    "sashimi": (sashimi, "sound", lambda tmp: sashimi.spoken_digits("recordings", run=tmp)),
    "spoken_digits": (spoken_digits, "classify", lambda tmp: spoken_digits.spoken_digits("recordings", run=tmp)),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_asks_for_what_its_command_takes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, command, start = RUNS[name]
    signature, asked = inspect.signature(getattr(module, command)), []

    def note(*args: Any, **options: Any) -> None:
        asked.append(signature.bind(*args, **options).arguments)

    monkeypatch.setattr(module, command, note)
    start(str(tmp_path / "run"))
    assert asked[0]["run"] == str(tmp_path / "run")


def test_loudness_of_a_tone_is_that_of_its_band() -> None:
    t = np.arange(loudness.LENGTH) / loudness.RATE
    low, middle, high = loudness.loudness(0.5 * np.sin(2 * np.pi * 1000 * t)).T
    np.testing.assert_allclose(middle, np.log10(0.5**2 / 2), atol=1e-3)
    assert low.max() < -5
    assert high.max() < -5


def test_hiss_gets_the_official_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wav").mkdir()
    for name, samples in {"1_a_0": 3300, "1_a_4": 3200, "1_a_5": 4000, "1_a_14": 3200, "1_a_6": 1000}.items():
        with wave.open(str(tmp_path / "wav" / f"{name}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(loudness.RATE)
            file.writeframes(np.random.default_rng(0).integers(-3000, 3000, samples).astype("<i2").tobytes())
    asked: list[Any] = []
    signature = inspect.signature(loudness.regress)
    monkeypatch.setattr(loudness, "regress", lambda *args, **options: asked.append(signature.bind(*args, **options).arguments))
    loudness.hiss(str(tmp_path / "wav"), run=str(tmp_path / "run"))
    learn, test = np.load(asked[0]["data"]), np.load(asked[0]["test"])
    assert learn["X"].shape == test["X"].shape == (2, 3200)  # one recording is too short
    assert learn["y"].shape == test["y"].shape == (2, 40, 3)
    with pytest.raises(ValueError, match=r"has no recording of 0\.4 s"):
        loudness.hiss(str(tmp_path), run=str(tmp_path / "run"))
