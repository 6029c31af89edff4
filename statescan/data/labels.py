"""What each file of a folder is: by a CSV file, by a pattern over its name, or by the folder it lies in."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def labels_of(files: Sequence[Path], folder: Path, label: str | None, numbers: bool) -> tuple[Any, ...]:
    """One label a file; ``label`` as in :func:`statescan.data.labelled.read_labelled`."""
    if label is not None and label.lower().endswith(".csv"):
        return _by_table(files, folder, Path(label), numbers)
    if label is None:
        found = [file.parent.name for file in files]
    else:
        found = _by_pattern(files, label)
    return tuple(_number(text, file) for text, file in zip(found, files, strict=True)) if numbers else tuple(found)


def _by_pattern(files: Sequence[Path], label: str) -> list[str]:
    try:
        pattern = re.compile(label)
    except re.error as error:
        raise ValueError(f"label={label!r} is not a regular expression: {error}") from error
    if not pattern.groups:
        raise ValueError(f"label={label!r} has no group: put brackets around the part that is the label")
    labels = []
    for file in files:
        found = pattern.search(file.name)
        if found is None:
            raise ValueError(f"label={label!r} does not fit {file.name}")
        labels.append(found[1])
    return labels


def _by_table(files: Sequence[Path], folder: Path, table: Path, numbers: bool) -> tuple[Any, ...]:
    """Rows of files that the folder does not hold are left alone: one table may speak of several folders."""
    if not table.is_file():
        raise ValueError(f"there is no file {table} of labels")
    with open(table, newline="", encoding="utf-8-sig") as file:
        rows = [row for row in csv.reader(file) if row]
    if len(rows) < 2 or len(rows[0]) < 2:
        raise ValueError(f"{table} must have a header, names of files in its first column and labels in the second")
    width = len(rows[0])
    short = next((i for i, row in enumerate(rows, 1) if len(row) != width), None)
    if short is not None:
        raise ValueError(f"{table}: row {short} has {len(rows[short - 1])} cells under a header of {width}")
    known = {row[0].strip(): row[1:] for row in rows[1:]}
    labels: list[Any] = []
    for path in files:
        cells = known.get(path.relative_to(folder).as_posix(), known.get(path.name))
        if cells is None:
            raise ValueError(f"{table} has no row for {path.relative_to(folder).as_posix()}")
        if not numbers:
            labels.append(cells[0].strip())
        else:
            values = np.array([_number(cell, path) for cell in cells])
            labels.append(values if width > 2 else values[0])
    return tuple(labels)


def _number(text: str, file: Path) -> np.ndarray:
    try:
        return np.array(float(text) if text.strip() else np.nan)
    except ValueError as error:
        raise ValueError(f"the label of {file.name}, {text!r}, is not a number") from error
