"""``statescan demo``: train a small model on the standard library's source and let it speak."""

from __future__ import annotations

from statescan.procedures.demo import demo as run

__all__ = ["run"]
