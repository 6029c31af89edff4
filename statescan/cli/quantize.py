"""``statescan quantize``: a copy of a model with its weights in 8 or 4 bits."""

from __future__ import annotations

from statescan.procedures.quantize import quantize_folder as run

__all__ = ["run", "show"]

show = print
