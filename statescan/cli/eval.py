"""``statescan eval``: bits per byte of a model on text."""

from __future__ import annotations

from statescan.procedures.evaluate import evaluate as run

__all__ = ["run", "show"]

show = print
