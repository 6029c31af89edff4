"""What a model of single variates cannot do: of four variates the last is the second, a step later, and the second is white noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from statescan.estimators.forecast import Forecast, forecast
from statescan.files import write_text
from statescan.spec import Spec


def write(path: str | Path, rows: int = 12_000, seed: int = 0) -> None:
    """The table: a season of 12 with noise (a), white noise (b), a slow autoregression (c), and d, which follows b."""
    x = np.random.default_rng(seed).standard_normal((rows, 4))
    x[:, 0] = 2 * np.sin(2 * np.pi * np.arange(rows) / 12) + 0.3 * x[:, 0]
    for t in range(1, rows):
        x[t, 2] = 0.95 * x[t - 1, 2] + 0.3 * x[t, 2]
    x[1:, 3] = x[:-1, 1]
    lines = ["a,b,c,d", *(",".join(f"{value:.6f}" for value in row) for row in x)]
    write_text(path, "\n".join(lines) + "\n")


def s_mamba(run: str = "runs/follower", steps: int = 1_200, seed: int = 0) -> Forecast:
    """S-Mamba on it, one step ahead; the ridge sees one variate at a time."""
    data = Path(run).with_suffix(".csv")
    write(data)
    model: Spec[Any] = Spec("SMamba", d_model=32, d_state=4)
    return forecast(str(data), horizon=1, run=run, context=12, model=model, lr=3e-3, batch_size=64, steps=steps, patience=0, seed=seed)
