"""Labelled sequences: wav files of every width, arrays, .ts files; what is wrong with them."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from statescan.data.labelled import as_sequences, read_labelled
from statescan.data.sound import read_wav, resample


def write_wav(path: Path, samples: np.ndarray, width: int = 2, rate: int = 8000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = samples.reshape(len(samples), -1)
    whole = np.round(array * (2 ** (8 * width - 1) - 1)).astype(np.int64)
    if width == 1:
        data = (whole + 128).astype(np.uint8).tobytes()
    elif width == 3:
        data = whole.astype("<i4").reshape(-1, 1).view(np.uint8)[:, :3].tobytes()
    else:
        data = whole.astype(f"<i{width}").tobytes()
    with wave.open(str(path), "wb") as file:
        file.setparams((array.shape[1], width, rate, len(array), "NONE", ""))
        file.writeframes(data)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_samples_of_every_width(tmp_path: Path, width: int) -> None:
    samples = np.sin(np.arange(200) / 7)[:, None] * np.array([0.9, -0.4])
    write_wav(tmp_path / "x.wav", samples, width)
    read, rate = read_wav(tmp_path / "x.wav")
    assert rate == 8000
    np.testing.assert_allclose(read, samples, atol=2.0 / 2 ** (8 * width - 1) + 1e-7)


def test_resampling_keeps_a_tone_and_drops_what_does_not_fit() -> None:
    t = np.arange(1600) / 16000
    tone, high = np.sin(2 * np.pi * 500 * t), np.sin(2 * np.pi * 6000 * t)
    half = resample((tone + high)[:, None].astype(np.float32), 16000, 8000)
    np.testing.assert_allclose(half[:, 0], tone[::2], atol=1e-3)


def test_a_folder_by_folder_and_by_pattern(tmp_path: Path) -> None:
    for name in ("cat/a_1.wav", "dog/b_2.wav", "dog/a_3.wav"):
        write_wav(tmp_path / name, np.linspace(-0.5, 0.5, 20))
    assert read_labelled(tmp_path).labels == ("cat", "dog", "dog")
    by_pattern = read_labelled(tmp_path, label="^(.)_")
    assert by_pattern.labels == ("a", "a", "b")
    assert by_pattern.names == ("cat/a_1.wav", "dog/a_3.wav", "dog/b_2.wav")
    assert by_pattern.rate == 8000
    assert len(read_labelled(tmp_path, rate=4000).sequences[0]) == 10


def test_arrays_and_ts_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", X=np.arange(12.0).reshape(3, 4), y=np.array([0, 1, 0]))
    found = read_labelled(tmp_path / "x.npz")
    assert found.labels == ("0", "1", "0")
    np.testing.assert_array_equal(found.sequences[1], np.arange(4.0, 8)[:, None])
    (tmp_path / "x.ts").write_text("# c\n@problemName x\n@data\n1,2,?:4,5,6:up\n1,2:3,4:down\n")
    found = read_labelled(tmp_path / "x.ts")
    assert found.labels == ("up", "down")
    np.testing.assert_array_equal(found.sequences[0], [[1, 4], [2, 5], [np.nan, 6]])
    assert found.sequences[1].shape == (2, 2)


def test_what_is_refused(tmp_path: Path) -> None:
    write_wav(tmp_path / "a" / "x.wav", np.zeros(30))
    whole = (tmp_path / "a" / "x.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[:-20])
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "bad.ts").write_text("@data\n1,2,x:up\n")
    np.savez(tmp_path / "z.npz", X=np.zeros((2, 3)))
    for name, words in (
        ("cut.wav", "cut short or empty"), ("text.wav", "not a PCM wav file"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            read_wav(tmp_path / name)
    for name, words in (
        ("bad.ts", "line 2"),
        ("z.npz", "no array 'y'; it has X"),
        ("b", "no file or folder"),
        ("text.wav", "neither a folder"),
    ):
        with pytest.raises(ValueError, match=words):
            read_labelled(tmp_path / name)
    with pytest.raises(ValueError, match=r"does not fit x\.wav"):
        read_labelled(tmp_path / "a", label="^([0-9])")
    with pytest.raises(ValueError, match="has no group"):
        read_labelled(tmp_path / "a", label="^x")
    write_wav(tmp_path / "a" / "y.wav", np.zeros((30, 2)))
    with pytest.raises(ValueError, match=r"x\.wav has 1 channels and y\.wav 2"):
        read_labelled(tmp_path / "a")
    write_wav(tmp_path / "a" / "y.wav", np.zeros(30), rate=16000)
    with pytest.raises(ValueError, match=r"samples a second.*rate="):
        read_labelled(tmp_path / "a")
    with pytest.raises(ValueError, match="sequence 1 has 1 channels where 2 were expected"):
        as_sequences([np.zeros((3, 2)), np.zeros(3)])
    with pytest.raises(ValueError, match="infinite"):
        as_sequences([np.array([1.0, np.inf])])
