"""``statescan regress``: numbers from sequences, with a plot, beside simple regressors; ``--resume RUN`` goes on with a run."""

from __future__ import annotations

from statescan.cli.inputs import resumed as rewrite
from statescan.estimators.classify import regress as run

__all__ = ["rewrite", "run", "show"]

show = print
