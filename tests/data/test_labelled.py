"""Labelled sequences: wav files of every width, mel spectra, images, tables of labels, arrays, .ts files; what is wrong with them."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from statescan.data.labelled import as_sequences, read_labelled
from statescan.data.sound import log_mel, mel_bands, read_wav, resample


def write_wav(path: Path, samples: np.ndarray, width: int = 2, rate: int = 8000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = samples if samples.ndim == 2 else samples[:, None]
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
    np.savez(tmp_path / "nan.npz", X=np.zeros((3, 4)), y=np.array([0.0, np.nan, 1.0]))
    for name, words in (
        ("cut.wav", "cut short or empty"), ("text.wav", "not a PCM wav file"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            read_wav(tmp_path / name)
    for name, words in (
        ("bad.ts", "line 2"),
        ("z.npz", "no array 'y'; it has X"),
        ("nan.npz", "the class of sequence 1 is NaN"),
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


def test_mel_spectra_are_those_of_a_direct_transform() -> None:
    rate, rng = 1000, np.random.default_rng(0)
    samples = rng.standard_normal((87, 2)).astype(np.float32)
    found = log_mel(samples, rate, bands=5)
    length, step, size = 25, 10, 32
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
    assert found.shape == (1 + -(-(87 - length) // step), 10)
    for frame in (0, 3, len(found) - 1):
        for channel in range(2):
            cut = np.zeros(length)
            piece = samples[frame * step : frame * step + length, channel]
            cut[: len(piece)] = piece
            n, k = np.arange(length), np.arange(size // 2 + 1)[:, None]
            power = np.abs((np.exp(-2j * np.pi * k * n / size) * cut * window).sum(1)) ** 2
            mel = np.log(np.maximum(power @ mel_bands(rate, size, 5), 1e-10))
            np.testing.assert_allclose(found[frame, 5 * channel : 5 * channel + 5], mel, rtol=1e-3, atol=1e-4)
    bands = mel_bands(8000, 256, 40)
    assert (bands.max(0) > 0).all()
    inside = bands[(np.arange(129) * 8000 / 256 > 100) & (np.arange(129) * 8000 / 256 < 3700)]
    np.testing.assert_allclose(inside.sum(1), 1, atol=1e-5)  # neighbours share each frequency between them
    assert len(log_mel(samples[:1], rate)) == 1


def test_images_as_pixels_and_as_rows(tmp_path: Path) -> None:
    Image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (3, 4), dtype=np.uint8)
    for name in ("cat/a.png", "dog/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(grey).save(tmp_path / name)
    found = read_labelled(tmp_path)
    assert found.labels == ("cat", "dog")
    np.testing.assert_allclose(found.sequences[0], grey.reshape(-1, 1) / 255, rtol=1e-6)
    np.testing.assert_allclose(read_labelled(tmp_path, features="rows").sequences[1], grey / 255, rtol=1e-6)
    assert read_labelled(tmp_path, size=6).sequences[0].shape == (36, 1)
    colour = rng.integers(0, 256, (3, 5, 3), dtype=np.uint8)
    Image.fromarray(colour).save(tmp_path / "dog/b.png")
    with pytest.raises(ValueError, match=r"a\.png is grey and b\.png coloured"):
        read_labelled(tmp_path)
    Image.fromarray(colour[:, :4]).save(tmp_path / "cat/a.png")
    np.testing.assert_allclose(read_labelled(tmp_path).sequences[1], colour.reshape(-1, 3) / 255, rtol=1e-6)
    with pytest.raises(ValueError, match=r"a\.png is 4 pixels wide and b\.png 5.*size="):
        read_labelled(tmp_path, features="rows")
    assert read_labelled(tmp_path, features="rows", size=2).sequences[0].shape == (2, 6)
    deep = np.array([[0, 65535]], np.uint16)
    (tmp_path / "deep").mkdir()
    Image.fromarray(deep).save(tmp_path / "deep/x.png")
    np.testing.assert_allclose(read_labelled(tmp_path / "deep").sequences[0], [[0], [1]])
    with pytest.raises(ValueError, match="features=mel is for sound"):
        read_labelled(tmp_path, features="mel")
    (tmp_path / "dog/b.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"b\.png is not an image that can be read"):
        read_labelled(tmp_path)
    write_wav(tmp_path / "x.wav", np.zeros(9))
    with pytest.raises(ValueError, match="sound and images"):
        read_labelled(tmp_path)


def test_labels_from_a_table_and_numbers(tmp_path: Path) -> None:
    for name in ("a/x.wav", "b/y.wav"):
        write_wav(tmp_path / name, np.linspace(-1, 1, 400))
    table = tmp_path / "labels.csv"
    table.write_text("file,kind,size\na/x.wav,low,1.5\ny.wav,high,\nz.wav,low,3\n")
    assert read_labelled(tmp_path, label=str(table)).labels == ("low", "high")
    table.write_text("file,left,right\nx.wav,1,2\ny.wav,,4\n")
    found = read_labelled(tmp_path, label=str(table), numbers=True, features="mel")
    np.testing.assert_array_equal(np.stack(found.labels), [[1, 2], [np.nan, 4]])
    assert found.sequences[0].shape == (4, 40)
    np.savez(tmp_path / "x.npz", X=np.zeros((2, 3)) + np.arange(3), y=np.array([[0, np.nan, 1], [1, 1, 0]]))
    assert [row.tolist() for row in read_labelled(tmp_path / "x.npz").labels] == [["0.0", "", "1.0"], ["1.0", "1.0", "0.0"]]
    assert read_labelled(tmp_path / "x.npz", numbers=True).labels[1].tolist() == [1, 1, 0]
    (tmp_path / "x.ts").write_text("@targetLabel true\n@data\n1,2:0.5\n2,1:-3\n")
    assert [float(v) for v in read_labelled(tmp_path / "x.ts", numbers=True).labels] == [0.5, -3]
    for text, words in (
        ("file,kind\nx.wav,1\n", r"has no row for b/y\.wav"),
        ("file\nx.wav\n", "must have a header"),
        ("file,kind\nx.wav\n", "row 2 has 1 cells under a header of 2"),
        ("file,kind\nx.wav,low\ny.wav,high\n", r"the label of x\.wav, 'low', is not a number"),
    ):
        table.write_text(text)
        with pytest.raises(ValueError, match=words):
            read_labelled(tmp_path, label=str(table), numbers=True)
    with pytest.raises(ValueError, match="there is no file"):
        read_labelled(tmp_path, label="none.csv")
