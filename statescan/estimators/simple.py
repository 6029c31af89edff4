"""What any classifier or regressor of sequences has to beat: the most frequent class or the mean, and a ridge regression."""

from __future__ import annotations

from typing import Any

import numpy as np

from statescan.data.labelled import Labelled

_VALUES = 2000
"""Values a sequence that a ridge sees as they are; longer ones it sees by their statistics."""
_PAST = 16
"""Positions that it sees for an answer a position."""


def ridge(taught: Labelled, tested: Labelled, targets: np.ndarray, stride: int | None = None) -> tuple[str, np.ndarray]:
    """(what it saw, predictions) of a ridge regression on ``targets``, the rows of all ``taught`` below each other, NaN where missing.

    It sees the values, where all sequences have the same few; otherwise the logarithm of length, and each channel's mean, spread and mean
    absolute step. With ``stride``, answers are one each so many positions, and it sees the last 16 positions before each.
    """
    if stride is not None:
        what, of = f"ridge on the last {_PAST} values", lambda s: _recent(s, stride)
    elif len({s.shape for s in (*taught.sequences, *tested.sequences)}) == 1 and taught.sequences[0].size <= _VALUES:
        what, of = "ridge on all values", lambda s: np.concatenate([np.nan_to_num(s).ravel(), [1.0]])[None]
    else:
        what, of = "ridge on means and spreads", _statistics
    x, asked = (np.concatenate([of(s) for s in part.sequences]).astype(np.float64) for part in (taught, tested))
    seen = ~np.isnan(targets).any(1)
    x, y = x[seen], targets[seen]
    scale = np.where(x.std(0) > 0, x.std(0), 1.0)
    x = x / scale
    weights = np.linalg.solve(x.T @ x + 1e-3 * len(x) * np.eye(x.shape[1]), x.T @ y)
    return what, asked / scale @ weights


def _statistics(s: np.ndarray) -> np.ndarray:
    steps = np.abs(np.diff(s, axis=0)) if len(s) > 1 else np.zeros_like(s)
    rows = [_seen(np.nanmean, s), _seen(np.nanstd, s), _seen(np.nanmean, steps)]
    return np.concatenate([*rows, [np.log(len(s)), 1.0]])[None]


def _seen(of: Any, values: np.ndarray) -> np.ndarray:
    """Of each channel that has a value; zero for the others."""
    found, channels = np.zeros(values.shape[1]), ~np.isnan(values).all(0)
    found[channels] = of(values[:, channels], 0)
    return found


def _recent(s: np.ndarray, stride: int) -> np.ndarray:
    padded = np.concatenate([np.zeros((_PAST - 1, s.shape[1])), np.nan_to_num(s)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, _PAST, 0).reshape(len(s), -1)
    last = np.minimum(np.arange(stride - 1, len(s) + stride - 1, stride), len(s) - 1)
    return np.concatenate([windows[last], np.ones((len(last), 1))], 1)
