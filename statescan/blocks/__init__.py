"""Norm, residual, gate and merge around mixers."""

from statescan.blocks.residual import Residual
from statescan.blocks.vss import VSSBlock

__all__ = ["Residual", "VSSBlock"]
