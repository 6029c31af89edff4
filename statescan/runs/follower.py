"""What a model of single variates cannot do: four variates of white noise, of which the last is the second, a step later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from statescan.estimators.forecast import Forecast, forecast
from statescan.files import write_text
from statescan.spec import Spec


def write(path: str | Path, rows: int = 4_000, seed: int = 0) -> None:
    """The table, with columns a, b, c, d: d follows b, and nothing else can be known."""
    x = np.random.default_rng(seed).standard_normal((rows, 4))
    x[1:, 3] = x[:-1, 1]
    lines = ["a,b,c,d", *(",".join(f"{value:.6f}" for value in row) for row in x)]
    write_text(path, "\n".join(lines) + "\n")


def s_mamba(run: str = "runs/follower", steps: int = 1_500, seed: int = 0) -> Forecast:
    """S-Mamba on it; the ridge sees one variate at a time."""
    data = Path(run).with_suffix(".csv")
    write(data)
    model: Spec[Any] = Spec("SMamba", d_model=32, d_state=4, dropout=0.0)
    return forecast(str(data), horizon=1, run=run, context=12, model=model, lr=5e-3, batch_size=64, steps=steps, patience=0, seed=seed)
