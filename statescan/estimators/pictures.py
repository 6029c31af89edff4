"""What came out, against what was right: a confusion matrix, points, a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from statescan.files import replacing


def figure(width: float, height: float) -> Any:
    """An empty matplotlib figure."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install 'statescan[plots]', or --plot false") from error
    return Figure(figsize=(width, height), layout="constrained")


def draw_confusion(classes: np.ndarray, right: np.ndarray, guess: np.ndarray, path: Path) -> None:
    """What was taken for what: counts, a row a true class."""
    table = np.zeros((len(classes), len(classes)), int)
    np.add.at(table, (np.searchsorted(classes, right), np.searchsorted(classes, guess)), 1)
    size = 2.5 + 0.42 * len(classes)
    picture = figure(size, size)
    axes = picture.add_subplot()
    axes.imshow(table / np.maximum(table.sum(1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    for i, j in zip(*np.nonzero(table), strict=True):
        share = table[i, j] / table[i].sum()
        axes.text(j, i, str(table[i, j]), ha="center", va="center", fontsize=8, color="white" if share > 0.5 else "black")
    ticks = range(len(classes))
    axes.set(xlabel="taken for", ylabel="is", xticks=ticks, yticks=ticks, title=f"{100 * float((right == guess).mean()):.1f} % right")
    axes.set_xticklabels(classes, rotation=90 if max(len(str(c)) for c in classes) > 2 else 0, fontsize=8)
    axes.set_yticklabels(classes, fontsize=8)
    with replacing(path) as temporary:
        picture.savefig(temporary, format="png", dpi=110)


def draw_points(right: np.ndarray, guess: np.ndarray, path: Path) -> None:
    """Predicted against true, (n, K): a panel a target."""
    picture = figure(0.5 + 3.6 * right.shape[1], 4)
    for k, axes in enumerate(np.atleast_1d(picture.subplots(1, right.shape[1]))):
        known = right[~np.isnan(right[:, k]), k]
        axes.scatter(right[:, k], guess[:, k], s=9, alpha=0.6)
        if len(known):
            axes.axline((float(known.mean()),) * 2, slope=1, color="grey", linestyle="--", linewidth=1)
        axes.set(xlabel="true", ylabel="predicted", title=f"target {k + 1}" if right.shape[1] > 1 else "")
        axes.set_aspect("equal", adjustable="datalim")
        axes.grid(alpha=0.3)
    with replacing(path) as temporary:
        picture.savefig(temporary, format="png", dpi=110)


def draw_trace(right: np.ndarray, guess: np.ndarray, name: str, unit: str, path: Path) -> None:
    """One sequence's targets and answers, (T, K), of positions or frames: a panel a target."""
    picture = figure(9, 0.8 + 2 * right.shape[1])
    for k, axes in enumerate(np.atleast_1d(picture.subplots(right.shape[1], 1, sharex=True))):
        axes.plot(right[:, k], color="black", linewidth=1, label="true")
        axes.plot(guess[:, k], color="C0", linewidth=1, label="predicted")
        axes.set(ylabel=f"target {k + 1}" if right.shape[1] > 1 else "target")
        axes.grid(alpha=0.3)
    picture.axes[-1].set_xlabel(unit)
    picture.axes[0].set_title(name, fontsize=9, loc="left")
    picture.axes[0].legend(fontsize=8)
    with replacing(path) as temporary:
        picture.savefig(temporary, format="png", dpi=110)
