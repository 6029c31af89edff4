"""What a model of sound has to beat, in bits a sample: counting, linear prediction, and an LSTM of equal size."""

from __future__ import annotations

import numpy as np
import torch

from statescan.data.waves import Waves
from statescan.heads.sound import SoundModel
from statescan.procedures.floors import Recurrent

ORDER = 32
"""Samples that the linear prediction sees."""


def lstm_like(model: SoundModel) -> SoundModel:
    """A sound model whose network is an LSTM, as near in parameters as a width can make it."""
    wanted = sum(p.numel() for p in model.parameters())

    def made(width: int) -> SoundModel:
        return SoundModel(width, Recurrent, model.levels, model.coding, model.components, model.rate)

    def size(width: int) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in made(width).parameters())

    width = 1
    while size(width + 1) <= wanted:
        width += 1
    return made(width if wanted - size(width) <= size(width + 1) - wanted else width + 1)


def counted(taught: Waves, tested: Waves, levels: int) -> dict[str, float]:
    """Bits a sample of a uniform choice, of the training part's histogram, and of the level given the two before it.

    The last mixes orders as Witten and Bell do: P(c | ab) = (n(abc) + t(ab) P(c | b)) / (n(ab) + t(ab)), where t(ab) levels are known to
    follow ab; likewise P(c | b) from the histogram, to which one of each level is added.
    """
    a, b = _grams(taught, levels), _grams(tested, levels)
    histogram = (np.bincount(a[:, 2], minlength=levels) + 1) / (len(a) + levels)
    p = histogram[b[:, 2]]
    bits = {"uniform": float(np.log2(levels)), "histogram": float(-np.log2(p).mean())}
    for order in (1, 2):
        known, asked = (_key(grams[:, 2 - order :], levels) for grams in (a, b))
        whole, times = np.unique(known, return_counts=True)
        contexts, follow, total = _contexts(whole, times, levels)
        n = _look(whole, times, asked)
        t, total_of = _look(contexts, follow, asked // levels), _look(contexts, total, asked // levels)
        p = np.where(total_of > 0, (n + t * p) / np.maximum(total_of + t, 1), p)
    return {**bits, "two levels before": float(-np.log2(p).mean())}


def _grams(waves: Waves, levels: int) -> np.ndarray:
    """(samples, 3): each level behind the two before it; silence stands before a beginning."""
    silence, rows = levels // 2, []
    for i in range(len(waves.names)):
        x = np.concatenate([[silence, silence], waves.recording(i).astype(np.int64)])
        rows.append(np.stack([x[:-2], x[1:-1], x[2:]], 1))
    return np.concatenate(rows)


def _key(grams: np.ndarray, levels: int) -> np.ndarray:
    key = grams[:, 0]
    for column in range(1, grams.shape[1]):
        key = key * levels + grams[:, column]
    return key


def _contexts(whole: np.ndarray, times: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Contexts, how many levels follow each, and how often it occurs."""
    contexts, place, follow = np.unique(whole // levels, return_inverse=True, return_counts=True)
    return contexts, follow, np.bincount(place, times)


def _look(keys: np.ndarray, values: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Values of the keys that are asked for, 0 where there is none."""
    at = np.searchsorted(keys, asked).clip(max=len(keys) - 1)
    return np.where(keys[at] == asked, values[at], 0)


def predicted(taught: Waves, tested: Waves, model: SoundModel, seed: int = 0) -> float:
    """Bits a sample of a linear prediction from :data:`ORDER` samples, with a logistic error.

    The error's scale is c times the mean absolute error of the last w samples, and at least m; w, c and m are the best on some training
    recordings. A hundredth of the probability is uniform.
    """
    rng = np.random.default_rng(seed)
    some = rng.permutation(len(taught.names))[:200]
    grid = model.decode(torch.arange(model.levels)).double().numpy()
    gram, right = np.zeros((ORDER, ORDER)), np.zeros(ORDER)
    for i in some:
        past, x = _past(grid[taught.recording(int(i))])
        gram += past.T @ past
        right += past.T @ x
    weights = np.linalg.solve(gram + 1e-6 * np.trace(gram) / ORDER * np.eye(ORDER) + 1e-9 * np.eye(ORDER), right)
    few = some[:40]
    best: tuple[float, tuple[int, float, float]] = (np.inf, (16, 1.0, 1e-3))
    for window in (16, 64):
        for factor in (0.4, 0.6, 0.8, 1.0):
            for least in (3e-4, 1e-3, 3e-3):
                bits = sum(_bits(taught.recording(int(i)), grid, weights, (window, factor, least), model) for i in few)
                best = min(best, (bits, (window, factor, least)))
    total = sum(_bits(tested.recording(i), grid, weights, best[1], model) for i in range(len(tested.names)))
    return float(total / len(tested.levels))


def _past(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(T, ORDER): the samples before each, the nearest last; zeros before the beginning."""
    return np.lib.stride_tricks.sliding_window_view(np.concatenate([np.zeros(ORDER), x]), ORDER)[:-1], x


def _bits(levels: np.ndarray, grid: np.ndarray, weights: np.ndarray, how: tuple[int, float, float], model: SoundModel) -> float:
    window, factor, least = how
    past, x = _past(grid[levels])
    guess = past @ weights
    error = np.concatenate([[0.0], np.cumsum(np.abs(x - guess))])
    before = np.arange(len(x))
    start = np.maximum(before - window, 0)
    scale = np.maximum(factor * (error[before] - error[start]) / np.maximum(before - start, 1), least)
    edges = np.concatenate([[-np.inf], (grid[:-1] + grid[1:]) / 2, [np.inf]])
    at = levels.astype(np.int64)
    with np.errstate(over="ignore"):
        upper, lower = (1 / (1 + np.exp(-(edges[at + k] - guess) / scale)) for k in (1, 0))
    return float(-np.log2(0.99 * (upper - lower) + 0.01 / model.levels).sum())
