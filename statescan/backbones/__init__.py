"""Repeats blocks."""

from statescan.backbones.flat import FlatBackbone, FlatState
from statescan.backbones.pyramid import Pyramid

__all__ = ["FlatBackbone", "FlatState", "Pyramid"]
