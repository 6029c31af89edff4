"""Looks across positions, so it may carry state. One file a mixer."""

from statescan.mixers.mamba import Mamba, MambaState
from statescan.mixers.mamba2 import Mamba2, Mamba2State
from statescan.mixers.ss2d import SS2D

__all__ = ["SS2D", "Mamba", "Mamba2", "Mamba2State", "MambaState"]
