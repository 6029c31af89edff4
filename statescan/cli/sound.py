"""``statescan sound``: recordings in; a model of sound, its bits a sample and what it sounds like out."""

from __future__ import annotations

from statescan.cli.inputs import resumed as rewrite
from statescan.procedures.sound import sound as run

__all__ = ["rewrite", "run", "show"]

show = print
