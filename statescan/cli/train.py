"""``statescan train``: train a model; ``statescan train --resume RUN`` goes on with one."""

from __future__ import annotations

from statescan.cli.inputs import resumed as rewrite
from statescan.procedures.train import train as run

__all__ = ["rewrite", "run"]
