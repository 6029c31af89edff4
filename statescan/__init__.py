"""State-space sequence models under one contract.

>>> import statescan as ss
>>> layer = ss.Mamba2(d_model=256, headdim=64)
>>> y, state = layer.scan(x)                  # doctest: +SKIP
"""

from statescan import models, ops, state
from statescan.backbones import FlatBackbone, Pyramid
from statescan.engine import Engine
from statescan.heads import Classifier, ImageClassifier, LanguageModel
from statescan.interop import export_pretrained, from_pretrained, save_pretrained
from statescan.layers import MLP, GatedMLP
from statescan.mixers import (
    GLA,
    HGRN2,
    KDA,
    LRU,
    MLSTM,
    RGLRU,
    S4D,
    SLSTM,
    SS2D,
    Attention,
    Bidirectional,
    CrossAttention,
    DeltaNet,
    GatedDeltaNet,
    GatedMemoryUnit,
    GatedShortConv,
    GroupedMamba,
    Mamba,
    Mamba2,
    Mamba3,
    MLSTMBlock,
    MoE,
    MultiheadLatentAttention,
    Parallel,
    RetNet,
    RWKV7ChannelMix,
    RWKV7TimeMix,
)
from statescan.ops.dispatch import explain, implementation
from statescan.parameters import parameter_groups
from statescan.procedures.generate import Prefix, generate, prefill
from statescan.procedures.quantize import quantize
from statescan.protocols import CausalMixer, Mixer
from statescan.registry import create_model, list_models, register, register_model
from statescan.spec import Spec
from statescan.timeline import Timeline

__version__ = "0.1.0"

__all__ = [
    "GLA",
    "HGRN2",
    "KDA",
    "LRU",
    "MLP",
    "MLSTM",
    "RGLRU",
    "S4D",
    "SLSTM",
    "SS2D",
    "Attention",
    "Bidirectional",
    "CausalMixer",
    "Classifier",
    "CrossAttention",
    "DeltaNet",
    "Engine",
    "FlatBackbone",
    "GatedDeltaNet",
    "GatedMLP",
    "GatedMemoryUnit",
    "GatedShortConv",
    "GroupedMamba",
    "ImageClassifier",
    "LanguageModel",
    "MLSTMBlock",
    "Mamba",
    "Mamba2",
    "Mamba3",
    "Mixer",
    "MoE",
    "MultiheadLatentAttention",
    "Parallel",
    "Prefix",
    "Pyramid",
    "RWKV7ChannelMix",
    "RWKV7TimeMix",
    "RetNet",
    "Spec",
    "Timeline",
    "create_model",
    "explain",
    "export_pretrained",
    "from_pretrained",
    "generate",
    "implementation",
    "list_models",
    "models",
    "ops",
    "parameter_groups",
    "prefill",
    "quantize",
    "register",
    "register_model",
    "save_pretrained",
    "state",
]

_LAZY = ("analysis", "compat", "data", "dynamics", "routes", "testing")


def __getattr__(name: str) -> object:
    """Submodules that few programs need are imported when they are first named."""
    if name in _LAZY:
        import importlib

        return importlib.import_module(f"statescan.{name}")
    raise AttributeError(f"module 'statescan' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_LAZY])
