"""``statescan finetune``: go on training a model on examples; ``statescan finetune --resume RUN`` goes on with a run."""

from __future__ import annotations

from statescan.cli.train import rewrite
from statescan.procedures.finetune import finetune as run

__all__ = ["rewrite", "run", "show"]

show = print
