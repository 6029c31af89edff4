"""The token ids that every participant is fed: no torch, no global seed."""

from __future__ import annotations

import numpy as np

PROMPT = 16
"""Tokens that a sequence holds before the first decoded one."""


def tokens(batch: int, length: int, vocabulary: int) -> np.ndarray:
    """(B, L) int64; a longer row begins with a shorter one's ids."""
    rows = [np.random.default_rng(1000 + row).integers(0, vocabulary, length) for row in range(batch)]
    return np.stack(rows).astype(np.int64)
