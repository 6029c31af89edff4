"""Looks across positions, so it may carry state. One file a mixer."""

from statescan.mixers.attention import Attention, AttentionState, GrowingAttentionState
from statescan.mixers.bidirectional import Bidirectional
from statescan.mixers.butterfly import ButterflyConv
from statescan.mixers.companion import ClosedLoopCompanion, Companion, CompanionState
from statescan.mixers.conv_s5 import ConvS5, ConvS5State
from statescan.mixers.cross_attention import CrossAttention
from statescan.mixers.delta import DeltaState
from statescan.mixers.deltanet import DeltaNet
from statescan.mixers.ema import BidirectionalEMA, EMAState, MultiHeadEMA
from statescan.mixers.gated_deltanet import GatedDeltaNet
from statescan.mixers.gla import GLA, MatrixState
from statescan.mixers.gmu import GatedMemoryUnit
from statescan.mixers.grid import Grid
from statescan.mixers.grouped_mamba import GroupedMamba
from statescan.mixers.h3 import H3, H3Conv, H3ConvState, H3State
from statescan.mixers.hgrn2 import HGRN2
from statescan.mixers.hydra import Hydra
from statescan.mixers.kda import KDA
from statescan.mixers.lightning import LightningAttention
from statescan.mixers.log_linear import LogLinearDeltaState, LogLinearGatedDeltaNet, LogLinearMamba2, LogLinearMamba2State
from statescan.mixers.long_conv import BidirectionalLongConv, LongConv, WindowState
from statescan.mixers.longvq import LongVQ, LongVQState
from statescan.mixers.lru import LRU, RGLRU, LRUState, RGLRUState
from statescan.mixers.lssl import LSSL, LSSLState
from statescan.mixers.lti import LTIMixer
from statescan.mixers.mamba import Mamba, MambaState
from statescan.mixers.mamba2 import Mamba2, Mamba2State
from statescan.mixers.mamba3 import Mamba3, Mamba3State
from statescan.mixers.mesa import MesaNet, MesaState
from statescan.mixers.mh_ssm import MultiHeadSSM
from statescan.mixers.mla import GrowingLatentState, LatentState, MultiheadLatentAttention
from statescan.mixers.mlstm import MLSTM, MLSTMBlock, MLSTMBlockState, MLSTMState
from statescan.mixers.moe import MoE
from statescan.mixers.multihead_mamba import MultiheadMamba
from statescan.mixers.parallel import Parallel, ParallelState
from statescan.mixers.retnet import RetentionState, RetNet
from statescan.mixers.rwkv4 import RWKV4ChannelMix, RWKV4State, RWKV4TimeMix
from statescan.mixers.rwkv7 import RWKV7ChannelMix, RWKV7State, RWKV7TimeMix
from statescan.mixers.s4 import S4
from statescan.mixers.s4d import S4D, S4DState
from statescan.mixers.s5 import S5, BidirectionalS5, S5State, S5System
from statescan.mixers.sgconv import BidirectionalSGConv, SGConv
from statescan.mixers.shift import Shift, TapsState
from statescan.mixers.short_conv import GatedShortConv, ShortConvState
from statescan.mixers.slstm import SLSTM, SLSTMState
from statescan.mixers.sma import SMA, BidirectionalSMA, SMAState
from statescan.mixers.ss2d import SS2D
from statescan.mixers.two_sided import TwoSided

__all__ = [
    "GLA",
    "H3",
    "HGRN2",
    "KDA",
    "LRU",
    "LSSL",
    "MLSTM",
    "RGLRU",
    "S4",
    "S4D",
    "S5",
    "SLSTM",
    "SMA",
    "SS2D",
    "Attention",
    "AttentionState",
    "Bidirectional",
    "BidirectionalEMA",
    "BidirectionalLongConv",
    "BidirectionalS5",
    "BidirectionalSGConv",
    "BidirectionalSMA",
    "ButterflyConv",
    "ClosedLoopCompanion",
    "Companion",
    "CompanionState",
    "ConvS5",
    "ConvS5State",
    "CrossAttention",
    "DeltaNet",
    "DeltaState",
    "EMAState",
    "GatedDeltaNet",
    "GatedMemoryUnit",
    "GatedShortConv",
    "Grid",
    "GroupedMamba",
    "GrowingAttentionState",
    "GrowingLatentState",
    "H3Conv",
    "H3ConvState",
    "H3State",
    "Hydra",
    "LRUState",
    "LSSLState",
    "LTIMixer",
    "LatentState",
    "LightningAttention",
    "LogLinearDeltaState",
    "LogLinearGatedDeltaNet",
    "LogLinearMamba2",
    "LogLinearMamba2State",
    "LongConv",
    "LongVQ",
    "LongVQState",
    "MLSTMBlock",
    "MLSTMBlockState",
    "MLSTMState",
    "Mamba",
    "Mamba2",
    "Mamba2State",
    "Mamba3",
    "Mamba3State",
    "MambaState",
    "MatrixState",
    "MesaNet",
    "MesaState",
    "MoE",
    "MultiHeadEMA",
    "MultiHeadSSM",
    "MultiheadLatentAttention",
    "MultiheadMamba",
    "Parallel",
    "ParallelState",
    "RGLRUState",
    "RWKV4ChannelMix",
    "RWKV4State",
    "RWKV4TimeMix",
    "RWKV7ChannelMix",
    "RWKV7State",
    "RWKV7TimeMix",
    "RetNet",
    "RetentionState",
    "S4DState",
    "S5State",
    "S5System",
    "SGConv",
    "SLSTMState",
    "SMAState",
    "Shift",
    "ShortConvState",
    "TapsState",
    "TwoSided",
    "WindowState",
]
