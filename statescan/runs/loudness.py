"""HiSS where a sensor is faster than what is asked of it: from speech at 8 kHz the loudness in three bands, a hundred times a second.

A target is the logarithm of a power, which no linear map of samples is. The recordings: https://github.com/Jakobovski/free-spoken-digit-dataset,
with its official test part (indices 0 to 4 of each speaker). Results: docs/classify.md.
"""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

import numpy as np

from statescan.data.waves import read_mono
from statescan.estimators.classify import Result, regress
from statescan.spec import Spec

RATE, LENGTH, FRAME = 8_000, 3_200, 80
BANDS = (0, 500, 1_500, 4_000)
"""Edges in hertz."""
QUIET = 1e-6
"""Power below which no difference is asked for, 60 dB under full scale."""


def loudness(x: np.ndarray) -> np.ndarray:
    """Samples (L,) -> the decimal logarithm of the power in each band and frame, (L / FRAME, 3)."""
    spectrum = np.fft.rfft(x)
    edges = np.searchsorted(np.fft.rfftfreq(len(x), 1 / RATE), BANDS)
    bands = []
    for low, high in itertools.pairwise(edges):
        band = np.zeros_like(spectrum)
        band[low:high] = spectrum[low:high]
        bands.append(np.square(np.fft.irfft(band, len(x))).reshape(-1, FRAME).mean(1))
    return np.log10(np.stack(bands, 1) + QUIET)


def write(recordings: str | os.PathLike[str], folder: Path) -> None:
    """learn.npz and test.npz: the first 0.4 seconds of every recording that is as long, and what is asked for."""
    parts: dict[str, list[np.ndarray]] = {"learn": [], "test": []}
    for file in sorted(Path(recordings).glob("*.wav")):
        x = read_mono(file, RATE).numpy()[:LENGTH]
        if len(x) == LENGTH:
            parts["test" if re.search(r"_[0-4]\.wav$", file.name) else "learn"].append(x)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        if not rows:
            raise ValueError(
                f"{recordings} has no recording of {LENGTH / RATE} s for the part {name!r}: expected files like 7_jackson_32.wav"
            )
        np.savez(folder / f"{name}.npz", X=np.stack(rows), y=np.stack([loudness(x) for x in rows]))


def hiss(recordings: str, run: str = "runs/loudness", low_layers: int = 2, steps: int = 250, seed: int = 0) -> Result:
    """Two levels of S4, the lower one reading the 80 samples of a frame; ``low_layers=0`` puts one matrix in its place."""
    data = Path(run).with_name(Path(run).name + "-data")
    write(recordings, data)
    return regress(
        str(data / "learn.npz"), run, test=str(data / "test.npz"), per_step=True, mixer=Spec("S4"), d_model=32, layers=2,
        low_layers=low_layers, stride=FRAME, steps=steps, lr=4e-3, batch_size=8, seed=seed,
    )  # fmt: skip
