"""Repeats blocks."""

from statescan.backbones.flat import FlatBackbone, FlatState

__all__ = ["FlatBackbone", "FlatState"]
