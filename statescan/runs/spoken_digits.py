"""Spoken digits from raw samples at 8 kHz, on the official test part of fsdd (indices 0 to 4 of each speaker). Results: docs/classify.md.

The data: https://github.com/Jakobovski/free-spoken-digit-dataset.
"""

from __future__ import annotations

from typing import Any

from statescan.estimators.classify import Result, classify
from statescan.spec import Spec


def spoken_digits(recordings: str, run: str = "runs/spoken-digits", mixer: Spec[Any] = Spec("S4D"), seed: int = 0) -> Result:
    """Three layers of width 64 behind a learned stem of stride 16, 2000 steps of 32 recordings; an LSTM of the same width beside."""
    return classify(
        recordings, run, label=r"^(.)_", test=r"_[0-4]\.wav$", mixer=mixer, d_model=64, layers=3, stride=16, augment=True, steps=2000,
        lr=4e-3, batch_size=32, seed=seed,
    )  # fmt: skip
