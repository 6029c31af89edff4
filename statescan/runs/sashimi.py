"""A small SaShiMi of speech, 8 bits mu-law at 8 kHz: the free spoken digits with their official test part held out. Results: docs/sound.md.

The recordings: https://github.com/Jakobovski/free-spoken-digit-dataset.
"""

from __future__ import annotations

from statescan import registry
from statescan.procedures.sound import Sounded, sound


def spoken_digits(recordings: str, run: str = "runs/sashimi", steps: int = 1_100, floor_steps: int | None = None, seed: int = 0) -> Sounded:
    """`sashimi-small` on crops of 2048 samples; an LSTM of equal size beside it at as many steps (``floor_steps``, 0 for none)."""
    model = registry.models["sashimi-small"].spec
    return sound(recordings, run, model, held_out=r"_[0-4]\.wav$", steps=steps, floor_steps=floor_steps, seed=seed)
