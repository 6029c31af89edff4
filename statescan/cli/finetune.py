"""``statescan finetune``: go on training a model on examples; ``statescan finetune --resume RUN`` goes on with a run."""

from __future__ import annotations

import os

from statescan.cli.inputs import resumed as rewrite
from statescan.procedures.finetune import FinetuneResult
from statescan.procedures.finetune import finetune as run

__all__ = ["rewrite", "run", "show"]


def show(result: FinetuneResult) -> None:
    """Once, however many processes there are."""
    if os.environ.get("RANK", "0") == "0":
        print(result)
