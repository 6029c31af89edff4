"""State-space sequence models under one contract.

>>> import statescan as ss
>>> layer = ss.Mamba2(d_model=256, headdim=64)
>>> y, state = layer.scan(x)                  # doctest: +SKIP
"""

# ruff: noqa: E402
import gc as _gc

_collecting = _gc.isenabled()
_gc.disable()  # looking through torch's objects for garbage would take a third of the time of these imports

from statescan import models, ops, state
from statescan.backbones import FlatBackbone, Pyramid
from statescan.engine import Engine
from statescan.heads import (
    Classifier,
    ImageClassifier,
    LanguageModel,
    MaskedLanguageModel,
    ReverseComplement,
    SequenceClassifier,
    SequenceRegressor,
)
from statescan.interop import export_pretrained, from_pretrained, save_pretrained
from statescan.layers import MLP, GatedMLP
from statescan.mixers import (
    GLA,
    H3,
    HGRN2,
    KDA,
    LRU,
    LSSL,
    MLSTM,
    RGLRU,
    S4,
    S4D,
    S5,
    SLSTM,
    SMA,
    SS2D,
    Attention,
    Bidirectional,
    BidirectionalEMA,
    BidirectionalLongConv,
    BidirectionalS5,
    BidirectionalSGConv,
    BidirectionalSMA,
    ButterflyConv,
    ClosedLoopCompanion,
    Companion,
    ConvS5,
    CrossAttention,
    DeltaNet,
    GatedDeltaNet,
    GatedMemoryUnit,
    GatedShortConv,
    Grid,
    GroupedMamba,
    H3Conv,
    Hydra,
    LightningAttention,
    LogLinearGatedDeltaNet,
    LogLinearMamba2,
    LongConv,
    LongVQ,
    LTIMixer,
    Mamba,
    Mamba2,
    Mamba3,
    MesaNet,
    MLSTMBlock,
    MoE,
    MultiHeadEMA,
    MultiheadLatentAttention,
    MultiheadMamba,
    MultiHeadSSM,
    Parallel,
    RetNet,
    RWKV4ChannelMix,
    RWKV4TimeMix,
    RWKV7ChannelMix,
    RWKV7TimeMix,
    SGConv,
    Shift,
    TwoSided,
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

if _collecting:
    _gc.enable()

__all__ = [
    "GLA",
    "H3",
    "HGRN2",
    "KDA",
    "LRU",
    "LSSL",
    "MLP",
    "MLSTM",
    "RGLRU",
    "S4",
    "S4D",
    "S5",
    "SLSTM",
    "SMA",
    "SS2D",
    "Attention",
    "Bidirectional",
    "BidirectionalEMA",
    "BidirectionalLongConv",
    "BidirectionalS5",
    "BidirectionalSGConv",
    "BidirectionalSMA",
    "ButterflyConv",
    "CausalMixer",
    "Classifier",
    "ClosedLoopCompanion",
    "Companion",
    "ConvS5",
    "CrossAttention",
    "DeltaNet",
    "Engine",
    "FlatBackbone",
    "GatedDeltaNet",
    "GatedMLP",
    "GatedMemoryUnit",
    "GatedShortConv",
    "Grid",
    "GroupedMamba",
    "H3Conv",
    "Hydra",
    "ImageClassifier",
    "LTIMixer",
    "LanguageModel",
    "LightningAttention",
    "LogLinearGatedDeltaNet",
    "LogLinearMamba2",
    "LongConv",
    "LongVQ",
    "MLSTMBlock",
    "Mamba",
    "Mamba2",
    "Mamba3",
    "MaskedLanguageModel",
    "MesaNet",
    "Mixer",
    "MoE",
    "MultiHeadEMA",
    "MultiHeadSSM",
    "MultiheadLatentAttention",
    "MultiheadMamba",
    "Parallel",
    "Prefix",
    "Pyramid",
    "RWKV4ChannelMix",
    "RWKV4TimeMix",
    "RWKV7ChannelMix",
    "RWKV7TimeMix",
    "RetNet",
    "ReverseComplement",
    "SGConv",
    "SequenceClassifier",
    "SequenceRegressor",
    "Shift",
    "Spec",
    "Timeline",
    "TwoSided",
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

_LAZY = ("analysis", "compat", "data", "dynamics", "estimators", "routes", "testing")


def __getattr__(name: str) -> object:
    """Submodules that few programs need are imported when they are first named."""
    if name in _LAZY:
        import importlib

        return importlib.import_module(f"statescan.{name}")
    raise AttributeError(f"module 'statescan' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_LAZY])
