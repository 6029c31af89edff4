"""Norm, residual, gate and merge around mixers."""

from statescan.blocks.residual import Residual

__all__ = ["Residual"]
