"""Published forecasters on electricity transformers (ETTh1, ETTh2; Zhou et al., 2021), in the protocol that their papers share.

Hourly rows: the first 8,640 to learn from, 2,880 to choose the weights by, 2,880 to test on, the rest unused; scaled by mean and spread of
the first part; every window of the test part. The files are published at https://github.com/zhouhaoyi/ETDataset. Results: docs/forecast.md.
"""

from __future__ import annotations

from typing import Any

from statescan.estimators.forecast import Forecast, forecast
from statescan.spec import Spec

PROTOCOL: dict[str, Any] = {"horizon": 96, "rows": 14_400, "val_size": 2_880, "test_size": 2_880, "season": 24, "patience": 0}


def s_mamba(data: str, run: str = "runs/ett-s-mamba", steps: int = 500, seed: int = 0) -> Forecast:
    """All seven variates from windows of 96 (mode M): S-Mamba of the paper's size for ETTh1. Two epochs under a cosine
    from 1e-4, in place of ten from 7e-5 halved every epoch."""
    model: Spec[Any] = Spec("SMamba", d_model=256, d_state=2)
    return forecast(data, run=run, context=96, model=model, lr=1e-4, batch_size=32, steps=steps, seed=seed, **PROTOCOL)


def spacetime(data: str, run: str = "runs/ett-spacetime", steps: int = 1_500, seed: int = 0) -> Forecast:
    """The oil temperature alone from windows of 336 (mode S): SpaceTime of the paper's size, with batches of 16, under three epochs."""
    model: Spec[Any] = Spec("SpaceTime", n_layers=1)
    return forecast(data, run=run, targets="OT", context=336, model=model, lr=1e-3, batch_size=16, steps=steps, seed=seed, **PROTOCOL)
