"""Sound as levels: recordings from wav files, their parts, and crops of them."""

from __future__ import annotations

import os
import re
import wave
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from statescan.data.sound import read_wav, resample
from statescan.data.sources import place_of
from statescan.files import replacing


class Waves(NamedTuple):
    """Recordings as levels, one behind the other."""

    levels: np.ndarray
    """(samples,): uint8 or uint16"""
    offsets: np.ndarray
    """(n + 1,): where each begins, and the end"""
    names: tuple[str, ...]
    rate: int

    def recording(self, i: int) -> np.ndarray:
        """Levels of recording i."""
        return self.levels[self.offsets[i] : self.offsets[i + 1]]

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    @property
    def seconds(self) -> float:
        return len(self.levels) / self.rate

    @staticmethod
    def join(recordings: Sequence[np.ndarray], names: Sequence[str], rate: int) -> Waves:
        """From one array each."""
        offsets = np.concatenate([[0], np.cumsum([len(r) for r in recordings])]).astype(np.int64)
        return Waves(np.concatenate(recordings), offsets, tuple(names), rate)

    def pick(self, rows: Sequence[int] | np.ndarray) -> Waves:
        """Some of them, by number."""
        return Waves.join([self.recording(int(i)) for i in rows], [self.names[int(i)] for i in rows], self.rate)

    def slice(self, i: int, start: int, stop: int) -> Waves:
        """A part of recording i."""
        return Waves.join([self.recording(i)[start:stop]], [f"{self.names[i]}[{start}:{stop}]"], self.rate)


def read_waves(source: str | os.PathLike[str], rate: int, encode: Callable[[Tensor], Tensor], levels: int) -> Waves:
    """A wav file, or all of a folder at any depth, at ``rate`` samples a second; channels are averaged.

    ``encode`` turns samples in [-1, 1] into levels 0 .. ``levels`` - 1.
    """
    path = Path(source)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() == ".wav" and not p.name.startswith("."))
        if not files:
            raise ValueError(f"{path} holds no .wav file")
    elif path.is_file():
        files, path = [path], path.parent
    else:
        raise ValueError(f"there is no file or folder {path}")
    kind = np.uint8 if levels <= 256 else np.uint16
    return Waves.join(
        [encode(read_mono(file, rate)).numpy().astype(kind) for file in files], [f.relative_to(path).as_posix() for f in files], rate
    )


def read_mono(file: str | os.PathLike[str], rate: int) -> Tensor:
    """Samples (T,) of a wav file at a rate, its channels averaged."""
    samples, own = read_wav(file)
    return torch.from_numpy(np.ascontiguousarray(resample(samples, own, rate).mean(1)))


def write_wav(file: str | os.PathLike[str], samples: Tensor, rate: int) -> None:
    """Samples (T,) in [-1, 1] as a PCM file of one channel and 16 bits."""
    data = (samples.detach().cpu().double().clamp(-1, 1) * 32767).round().to(torch.int16).numpy().astype("<i2")
    with replacing(file) as temporary, wave.open(str(temporary), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(data.tobytes())


def split_waves(waves: Waves, held_out: str | None, fraction: float, salt: str = "") -> tuple[Waves, Waves]:
    """(the rest, held out): by a regular expression over names, or a fraction by a hash of salt and name; of one recording its tail.

    What one salt has left lies in one part of its places: a second split needs another.
    """
    if held_out is not None:
        try:
            chosen = np.array([re.search(held_out, name) is not None for name in waves.names])
        except re.error as error:
            raise ValueError(f"held_out={held_out!r} is not a regular expression: {error}") from error
        if chosen.all() or not chosen.any():
            raise ValueError(f"held_out={held_out!r} fits {'every' if chosen.all() else 'no'} name, for example {waves.names[0]!r}")
    elif len(waves.names) == 1:
        cut = int(len(waves.levels) * (1 - fraction))
        if not 0 < cut < len(waves.levels):
            raise ValueError(f"{waves.names[0]} has {len(waves.levels)} samples: too few to hold any out")
        return waves.slice(0, 0, cut), waves.slice(0, cut, len(waves.levels))
    else:
        places = np.array([place_of(salt + name) for name in waves.names])
        ordered = np.sort(places)
        chosen = places < min(max(fraction, float(ordered[1])), float(ordered[-1]))
    return waves.pick(np.flatnonzero(~chosen)), waves.pick(np.flatnonzero(chosen))


def crops(waves: Waves, rows: int, length: int, silence: int, seed: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Inputs and targets (rows, length), drawn by the seed alone; a target behind a recording's end is -100.

    A recording is drawn as often as it is long, and a place in it; a quarter of a crop over each end counts as that end, so that beginnings
    and ends are learned too. An input is the level before its target; before the first stands silence.
    """
    rng = np.random.default_rng(list(seed))
    inputs, targets = np.full((rows, length), silence, np.int64), np.full((rows, length), -100, np.int64)
    for row in range(rows):
        i = int(np.searchsorted(waves.offsets, rng.integers(len(waves.levels)), side="right")) - 1
        recording = waves.recording(i)
        last = max(0, len(recording) - length)
        start = int(np.clip(rng.integers(-(length // 4), last + length // 4 + 1), 0, last))
        part = recording[start : start + length]
        targets[row, : len(part)] = part
        inputs[row, 1 : len(part)] = part[:-1]
        inputs[row, 0] = recording[start - 1] if start else silence
    return torch.from_numpy(inputs), torch.from_numpy(targets)


def whole(waves: Waves, rows: Sequence[int], silence: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets (rows, longest) of whole recordings; a target behind an end is -100."""
    longest = max(len(waves.recording(i)) for i in rows)
    inputs, targets = np.full((len(rows), longest), silence, np.int64), np.full((len(rows), longest), -100, np.int64)
    for row, i in enumerate(rows):
        recording = waves.recording(i)
        targets[row, : len(recording)] = recording
        inputs[row, 1 : len(recording)] = recording[:-1]
    return torch.from_numpy(inputs), torch.from_numpy(targets)
