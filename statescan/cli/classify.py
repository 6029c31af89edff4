"""``statescan classify``: sequences by class, with a confusion matrix, beside simple classifiers; ``--resume RUN`` goes on with a run."""

from __future__ import annotations

from statescan.cli.inputs import resumed as rewrite
from statescan.estimators.classify import classify as run

__all__ = ["rewrite", "run", "show"]

show = print
