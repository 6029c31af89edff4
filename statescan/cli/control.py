"""``statescan control``: teach an agent with memory to act; ``statescan control --resume RUN`` goes on with a run."""

from __future__ import annotations

from statescan.cli.inputs import resumed as rewrite
from statescan.estimators.control import control as run

__all__ = ["rewrite", "run", "show"]

show = print
