"""The learning rate as a function of the step alone: nothing to save."""

from __future__ import annotations

import math


def warmup_cosine(step: int, steps: int, warmup: int, final: float) -> float:
    """The factor on the peak rate at ``step`` (from 0): linear over ``warmup`` steps, then half a cosine from 1 down to ``final``."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup + 1) / max(1, steps - warmup)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
