"""State-space sequence models under one contract.

>>> import statescan as ss
>>> layer = ss.Mamba2(d_model=256, headdim=64)
>>> y, state = layer.scan(x)                  # doctest: +SKIP
"""

from statescan import models, ops, state
from statescan.backbones import FlatBackbone
from statescan.heads import LanguageModel
from statescan.mixers import Mamba, Mamba2
from statescan.ops.dispatch import explain, implementation
from statescan.parameters import parameter_groups
from statescan.protocols import CausalMixer, Mixer
from statescan.registry import create_model, list_models, register, register_model
from statescan.spec import Spec
from statescan.timeline import Timeline

__version__ = "0.1.0"

__all__ = [
    "CausalMixer",
    "FlatBackbone",
    "LanguageModel",
    "Mamba",
    "Mamba2",
    "Mixer",
    "Spec",
    "Timeline",
    "create_model",
    "explain",
    "implementation",
    "list_models",
    "models",
    "ops",
    "parameter_groups",
    "register",
    "register_model",
    "state",
]
