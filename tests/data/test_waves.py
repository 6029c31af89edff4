"""Recordings as levels: files, parts and crops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from statescan.data.waves import Waves, crops, read_mono, read_waves, split_waves, whole, write_wav
from statescan.heads.waveform import linear_encode


def tone(seconds: float, rate: int, f: float = 200.0) -> torch.Tensor:
    return 0.5 * torch.sin(2 * torch.pi * f * torch.arange(round(seconds * rate)) / rate)


def some(n: int = 20) -> Waves:
    rng = np.random.default_rng(0)
    recordings = [rng.integers(0, 256, rng.integers(20, 90)).astype(np.uint8) for _ in range(n)]
    return Waves.join(recordings, [f"{i}.wav" for i in range(n)], 8000)


def test_files(tmp_path: Path) -> None:
    wave = tone(0.1, 8000)
    write_wav(tmp_path / "a" / "one.wav", wave, 8000)
    write_wav(tmp_path / "two.wav", tone(0.1, 16000), 16000)
    assert (read_mono(tmp_path / "a" / "one.wav", 8000) - wave).abs().max() < 1e-4
    waves = read_waves(tmp_path, 8000, linear_encode, 256)
    assert waves.names == ("a/one.wav", "two.wav")
    assert waves.lengths.tolist() == [800, 800]
    middle = slice(100, 700)  # the transform rings at the ends
    assert np.abs(waves.recording(0)[middle].astype(int) - waves.recording(1)[middle]).max() <= 2
    assert read_waves(tmp_path / "two.wav", 8000, linear_encode, 65536).levels.dtype == np.uint16


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no \.wav file"):
        read_waves(tmp_path, 8000, linear_encode, 256)
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match=r"bad\.wav is not a PCM wav file"):
        read_waves(tmp_path, 8000, linear_encode, 256)
    for pattern, message in (("(", "not a regular expression"), ("wav", "fits every name"), ("x", "fits no name")):
        with pytest.raises(ValueError, match=message):
            split_waves(some(), pattern, 0.1)


def test_parts() -> None:
    waves = some(200)
    taught, tested = split_waves(waves, None, 0.2)
    assert not set(taught.names) & set(tested.names)
    assert 20 < len(tested.names) < 60
    more = split_waves(waves.pick(range(150)), None, 0.2)[1]
    assert set(more.names) == {name for name in tested.names if int(name[:-4]) < 150}  # a file stays on its side
    assert split_waves(waves, r"^1\.", 0.1)[1].names == ("1.wav",)
    head, tail = split_waves(waves.pick([3]), None, 0.25)
    assert np.array_equal(np.concatenate([head.levels, tail.levels]), waves.recording(3))


def test_a_second_split_has_its_own_places() -> None:
    """What the first has left stands above its fraction: by the same places the second would find nothing below that."""
    others, _ = split_waves(some(200), None, 0.2)
    assert 10 < len(split_waves(others, None, 0.15, salt="validation ")[1].names) < 45
    assert len(split_waves(others, None, 0.15)[1].names) == 1


def test_crops() -> None:
    waves = some()
    inputs, targets = crops(waves, 400, 32, 128, (0, 5))
    again = crops(waves, 400, 32, 128, (0, 5))
    assert torch.equal(inputs, again[0])
    assert torch.equal(targets, again[1])
    assert not torch.equal(inputs, crops(waves, 400, 32, 128, (0, 6))[0])
    known = {bytes(waves.recording(i)) for i in range(20)}
    begins = ends = 0
    for x, y in zip(inputs, targets, strict=True):
        part = y[y >= 0]
        assert torch.equal(x[1 : len(part)], part[:-1])
        found = [(r, at) for r in known if (at := r.find(bytes(part.tolist()))) >= 0]
        assert found
        record, at = found[0]
        begins += at == 0
        ends += at + len(part) == len(record)
        assert x[0] == (record[at - 1] if at else 128)
        assert len(part) == min(32, len(record))
    assert begins > 40
    assert ends > 40


def test_whole() -> None:
    waves = some(3)
    inputs, targets = whole(waves, [2, 0], 128)
    for row, i in enumerate((2, 0)):
        record = torch.from_numpy(waves.recording(i).astype(np.int64))
        assert torch.equal(targets[row][targets[row] >= 0], record)
        assert inputs[row, 0] == 128
        assert torch.equal(inputs[row, 1 : len(record)], record[:-1])
