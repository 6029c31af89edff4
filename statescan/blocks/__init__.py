"""Norm, residual, gate and merge around mixers."""

from statescan.blocks.post_norm import PostNorm
from statescan.blocks.residual import Residual
from statescan.blocks.shared import EMBEDDING, SharedBlockLayer
from statescan.blocks.vss import VSSBlock

__all__ = ["EMBEDDING", "PostNorm", "Residual", "SharedBlockLayer", "VSSBlock"]
