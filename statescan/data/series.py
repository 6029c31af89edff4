"""Time series from tables: CSV or Parquet files, data frames and arrays; wide or long, with gaps, uneven times and unequal lengths."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from statescan.registry import nearest

_TIMES = ("ds", "date", "time", "timestamp", "datetime")
"""Names by which a column of times is known."""
UNEVEN = 1e-3
"""Spacings that differ from the usual one by more than this share of it are uneven. (Months and years always are, a little.)"""


class Series(NamedTuple):
    """One series, in order of time."""

    name: str
    stamps: np.ndarray
    """(T,): as read, datetime64 or numbers."""
    times: np.ndarray
    """(T,) float64: steps of the panel since the first observation."""
    values: np.ndarray
    """(T, V) float64; NaN where nothing was observed."""

    @property
    def even(self) -> bool:
        """One observation a step."""
        return bool(np.all(np.abs(np.diff(self.times) - 1) <= UNEVEN))

    def slice(self, start: int, stop: int) -> Series:
        """Observations start..stop-1."""
        return self._replace(stamps=self.stamps[start:stop], times=self.times[start:stop], values=self.values[start:stop])


class Panel(NamedTuple):
    """Series of the same variates."""

    series: tuple[Series, ...]
    variates: tuple[str, ...]
    step: Any
    """The usual time between two observations: the median, a timedelta64 or a number. (A unit, where no series has two.)"""
    timed: bool = True
    """There was a column of times; else rows are numbered from 0."""

    @property
    def even(self) -> bool:
        return all(series.even for series in self.series)

    def check(self) -> None:
        """Raise where there is nothing to learn: a variate that was never observed, or never changed."""
        for i, name in enumerate(self.variates):
            seen = np.concatenate([series.values[:, i] for series in self.series])
            seen = seen[~np.isnan(seen)]
            if not len(seen):
                raise ValueError(f"{name} has no value in any row; leave it out, by naming the others as targets")
            if seen.min() == seen.max():
                raise ValueError(
                    f"{name} is {seen[0]:g} in every row: there is nothing to forecast; leave it out, by naming the others as targets"
                )

    def filled(self) -> Panel:
        """With a row of missing values at every step that has no row, where all spacings are whole steps and few of them are long."""
        return self._replace(series=tuple(_fill(series, self.step) for series in self.series))

    def ahead(self, series: Series, horizon: int) -> np.ndarray:
        """The times of the ``horizon`` steps behind a series."""
        return series.stamps[-1] + np.arange(1, horizon + 1) * self.step


def _fill(series: Series, step: Any) -> Series:
    place = np.rint(series.times).astype(np.int64)
    if np.abs(series.times - place).max() > UNEVEN or (np.diff(place) < 1).any() or place[-1] >= 4 * len(place):
        return series
    values = np.full((place[-1] + 1, series.values.shape[1]), np.nan)
    values[place] = series.values
    return series._replace(
        stamps=series.stamps[0] + np.arange(len(values)) * step, times=np.arange(len(values), dtype=float), values=values
    )


def read_series(source: Any, time: str | None = None, id: str | None = None, targets: str | list[str] | None = None) -> Panel:
    """Series from a .csv or .parquet file, a pandas DataFrame, or an array (T,) or (T, V).

    Args:
        source: wide (a column of times, a column a variate) or long (a column that names the series: ``unique_id``, ``ds``, ``y``). A file
            without a header is all numbers, a column a variate.
        time: the column of times; by default the one called ds, date, time, timestamp or datetime, else rows are one step apart.
        id: the column that names the series; by default ``unique_id`` if there is one, else all rows are one series.
        targets: the columns to take; by default every numeric one.

    Rows are put in order of time. An empty cell is a missing value; a row may be missing too, its neighbours are then further apart.
    """
    frame, called = _frame(source)
    columns = [str(column) for column in frame.columns]
    frame.columns = columns
    for name, role in ((time, "time"), (id, "id"), *((t, "targets") for t in _listed(targets))):
        if name is not None and name not in columns:
            raise ValueError(f"{called} has no column {name!r} for {role}{nearest(name, columns)}; it has {', '.join(columns[:12])}")
    id = id if id is not None else "unique_id" if "unique_id" in columns else None
    time = time if time is not None else next((c for known in _TIMES for c in columns if c.lower() == known), None)
    if not len(frame):
        raise ValueError(f"{called} has no rows")
    stamps = np.arange(len(frame), dtype=np.float64) if time is None else _stamps(frame[time], called, time)
    values, variates = _values(frame, called, [c for c in columns if c not in (time, id)], _listed(targets))
    names = np.zeros(len(frame), np.int64) if id is None else frame[id].to_numpy()
    rows_of = {str(name): np.flatnonzero(names == name) for name in dict.fromkeys(names.tolist())}
    ordered = {name: rows[np.argsort(stamps[rows], kind="stable")] for name, rows in rows_of.items()}
    for name, rows in ordered.items():
        same = np.flatnonzero(stamps[rows][1:] == stamps[rows][:-1])
        if len(same):
            which = "" if id is None else f" of series {name}"
            hint = "" if id is not None else "; if rows belong to several series, name the column that tells them apart with id="
            raise ValueError(f"{called} has two rows{which} at {time}={stamps[rows][same[0]]}{hint}")
    gaps = np.concatenate([np.diff(stamps[rows]) for rows in ordered.values()])
    typical = float(np.median(gaps.astype(np.float64))) if len(gaps) else 1.0
    step = np.timedelta64(round(typical), "ns") if stamps.dtype.kind == "M" else typical
    series = tuple(
        Series(called if id is None else name, stamps[rows], (stamps[rows] - stamps[rows][0]) / step, values[rows])
        for name, rows in ordered.items()
    )
    return Panel(series, variates, step, time is not None)


def _listed(targets: str | list[str] | None) -> list[str]:
    return [] if targets is None else [targets] if isinstance(targets, str) else list(targets)


def _frame(source: Any) -> tuple[Any, str]:
    """(a DataFrame of our own, what to call it)."""
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError("reading series needs pandas: pip install 'statescan[series]'") from error
    if isinstance(source, pd.DataFrame):
        return source.copy(), "the frame"
    if isinstance(source, np.ndarray):
        if source.ndim not in (1, 2):
            raise ValueError(f"an array of series must be (T,) or (T, V); got {source.shape}")
        array = source.reshape(len(source), -1)
        return pd.DataFrame(array, columns=[f"y{i}" if array.shape[1] > 1 else "y" for i in range(array.shape[1])]), "the array"
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(f"series come from a file, a DataFrame or an array; got {type(source).__name__}")
    path = Path(source)
    if not path.is_file():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ValueError(f"there is no file {path}{nearest(path.name, beside)}")
    if path.suffix == ".parquet":
        try:
            return pd.read_parquet(path), path.name
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is not a Parquet file: {str(error).splitlines()[0]}") from error
    try:
        first = pd.read_csv(path, header=None, nrows=1)
        headless = all(pd.api.types.is_numeric_dtype(kind) for kind in first.dtypes)
        frame = pd.read_csv(path, header=None if headless else "infer", skipinitialspace=True)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        what = "is empty" if isinstance(error, pd.errors.EmptyDataError) else f"is not a table: {str(error).splitlines()[0]}"
        raise ValueError(f"{path} {what}") from error
    if headless:
        frame.columns = [f"y{i}" for i in range(frame.shape[1])]
    return frame, path.name


def _stamps(column: Any, called: str, name: str) -> np.ndarray:
    """Numbers, or datetime64 in nanoseconds."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(column):
        stamps = column.to_numpy(np.float64)
        wrong = np.flatnonzero(~np.isfinite(stamps))
    else:
        parsed = pd.to_datetime(column, errors="coerce", utc=True, format="mixed").dt.tz_localize(None)
        stamps = parsed.to_numpy("datetime64[ns]")
        wrong = np.flatnonzero(np.isnat(stamps))
    if len(wrong):
        raise ValueError(f"{called}: {name!r} of data row {wrong[0] + 1} is {column.iloc[wrong[0]]!r}, which is no time")
    return stamps


def _values(frame: Any, called: str, columns: list[str], targets: list[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    import pandas as pd

    taken = targets or [c for c in columns if pd.api.types.is_numeric_dtype(frame[c])]
    for name in () if targets else sorted(set(columns) - set(taken)):  # numbers with a few words among them are no names
        numbers = pd.to_numeric(frame[name], errors="coerce")
        wrong = np.flatnonzero(numbers.isna() & frame[name].notna())
        if 2 * len(wrong) < frame[name].notna().sum():
            raise ValueError(
                f"{called}: column {name!r} holds numbers, but {frame[name].iloc[wrong[0]]!r} in data row {wrong[0] + 1}: mend it, or name "
                "the columns to take as targets"
            )
    if not taken:
        raise ValueError(f"{called} has no column of numbers beside its times; it has {', '.join(columns) or 'no other'}")
    for name in taken:
        if not pd.api.types.is_numeric_dtype(frame[name]):
            numbers = pd.to_numeric(frame[name], errors="coerce")
            wrong = np.flatnonzero(numbers.isna() & frame[name].notna())
            what = f"data row {wrong[0] + 1} holds {frame[name].iloc[wrong[0]]!r}" if len(wrong) else "it holds no numbers"
            raise ValueError(f"{called}: column {name!r} is not a column of numbers: {what}")
    values = frame[taken].to_numpy(np.float64)
    values = np.where(np.isfinite(values), values, np.nan)
    return values, tuple(taken)
