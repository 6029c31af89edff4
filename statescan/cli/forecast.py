"""``statescan forecast``: series ahead, with bands, beside simple forecasts; ``--resume RUN`` goes on with a run."""

from __future__ import annotations

from statescan.cli.inputs import resumed as rewrite
from statescan.estimators.forecast import forecast as run

__all__ = ["rewrite", "run", "show"]

show = print
