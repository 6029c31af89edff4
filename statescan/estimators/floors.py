"""What any forecast has to beat: the last value, the value a season ago, and a ridge regression on the window."""

from __future__ import annotations

import numpy as np

from statescan.estimators.rows import Row

_MOST = 40_000_000
"""Numbers that a ridge learns from, at most; further windows are left out evenly."""


def last_value(window: np.ndarray, horizon: int) -> np.ndarray:
    """Windows (n, L) without gaps -> (n, horizon): the last value, again and again."""
    return np.repeat(window[:, -1:], horizon, 1)


def seasonal_value(row: Row, filled: np.ndarray, end: int, horizon: int, season: int) -> np.ndarray:
    """What was seen before position ``end`` at the same places of the last season, in time: (horizon, V)."""
    ahead = np.arange(1, horizon + 1)
    return _at(row, filled, end, row.times[end - 1] + ahead - season * (1 + (ahead - 1) // season))


def _at(row: Row, filled: np.ndarray, end: int, times: np.ndarray) -> np.ndarray:
    """Values (T, V) without gaps at whatever times before position ``end``."""
    return filled[(np.searchsorted(row.times, times + 0.5) - 1).clip(0, end - 1)]


class Ridge:
    """One matrix from a window to the horizon, both relative to the window's last value, for all series and variates alike.

    Column h of W is (X^T X + strength n I)^-1 X^T y_h, over the n windows after which something was observed h steps ahead.
    """

    def __init__(self, window: np.ndarray, target: np.ndarray, strength: float = 1e-3) -> None:
        """Windows (n, L) without gaps, and what followed (n, horizon), NaN where nothing was observed."""
        x, y = window - window[:, -1:], target - window[:, -1:]
        seen = ~np.isnan(y)
        self.weights = np.zeros((x.shape[1], y.shape[1]))
        for columns in [slice(None)] if seen.all() else [slice(h, h + 1) for h in range(y.shape[1])]:
            rows = seen[:, columns][:, 0]
            known = x[rows]
            gram = known.T @ known + strength * max(1, len(known)) * np.eye(x.shape[1])
            self.weights[:, columns] = np.linalg.solve(gram, known.T @ y[rows][:, columns])

    def __call__(self, window: np.ndarray) -> np.ndarray:
        """(n, L) -> (n, horizon)."""
        return (window - window[:, -1:]) @ self.weights + window[:, -1:]


def find_season(values: np.ndarray, longest: int) -> int:
    """The lag in 2..longest at which a series (T,) without gaps resembles itself more than at the lags beside it; 1 if none."""
    x = values - values.mean()
    if len(x) < 4 or not x.any():
        return 1
    longest = min(longest, len(x) // 2)
    n = 1 << (2 * len(x) - 1).bit_length()
    spectrum = np.fft.rfft(x, n)
    correlation = np.fft.irfft(spectrum * spectrum.conj(), n)[: longest + 1]
    correlation /= correlation[0]
    peaks = [k for k in range(2, longest) if correlation[k] >= max(correlation[k - 1], correlation[k + 1]) and correlation[k] > 0.1]
    return max(peaks, key=lambda k: correlation[k], default=1)


def against_floors(
    name: str,
    means: np.ndarray,
    rows: list[Row],
    origins: list[tuple[int, int]],
    variates: tuple[str, ...],
    context: int,
    val_size: int,
    season: int | None = None,
) -> dict[str, dict[str, float]]:
    """Errors of forecasts ``means`` (n, horizon, V), scaled, and of the floors: {name: {"mse", "mae", "mse of VARIATE" for each}}.

    ``origins`` are (row, end of the window): the rows' test parts begin at their first ones, and ``val_size`` positions before those the
    ridge stops to learn.
    """
    horizon, width = means.shape[1:]
    begins: dict[int, int] = {}
    for i, end in origins:
        begins.setdefault(i, end)
    length = min([context, *begins.values()])
    target = np.concatenate([rows[i].targets(np.array([end - 1]), horizon, len(rows[i].times)) for i, end in origins])
    if np.isnan(target).all():
        raise ValueError("the test part has no observed value: choose another test_size")
    filled = [row.filled() for row in rows]
    past, came = _columns(np.stack([filled[i][end - length : end] for i, end in origins])), _columns(target)
    learned = [(i, end) for i, start in begins.items() for end in range(length, start - val_size - horizon + 1)]
    learned = learned[:: max(1, len(learned) * width * (length + horizon) // _MOST)]
    if season is None:
        known = rows[0].times[begins[0] - 1]
        season = find_season(_at(rows[0], filled[0], begins[0], np.arange(known + 1))[:, -1], length)
    forecasts = {name: _columns(means), "last value": last_value(past, horizon)}
    if season > 1:
        forecasts[f"last season ({season})"] = _columns(
            np.stack([seasonal_value(rows[i], filled[i], end, horizon, season) for i, end in origins])
        )
    if learned:
        before = _columns(np.stack([filled[i][end - length : end] for i, end in learned]))
        after = np.concatenate([rows[i].targets(np.array([end - 1]), horizon, begins[i] - val_size) for i, end in learned])
        forecasts["ridge"] = Ridge(before, _columns(after))(past)
    of = np.concatenate([[rows[i].key[1]] if rows[i].key[1] else variates for i, _ in origins])
    errors: dict[str, dict[str, float]] = {}
    for who, forecast in forecasts.items():
        error = forecast - came
        errors[who] = {"mse": float(np.nanmean(error**2)), "mae": float(np.nanmean(np.abs(error)))}
        for variate in variates if len(variates) > 1 else ():
            mine = error[of == variate]
            errors[who][f"mse of {variate}"] = float(np.nanmean(mine**2)) if not np.isnan(mine).all() else float("nan")
    return errors


def _columns(windows: np.ndarray) -> np.ndarray:
    """(n, L, V) -> (n V, L)."""
    return np.swapaxes(windows, 1, 2).reshape(-1, windows.shape[1])
