"""Norm, residual, gate and merge around mixers."""

from statescan.blocks.residual import Residual
from statescan.blocks.shared import EMBEDDING, SharedBlockLayer
from statescan.blocks.vss import VSSBlock

__all__ = ["EMBEDDING", "Residual", "SharedBlockLayer", "VSSBlock"]
