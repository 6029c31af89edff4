"""Owns parameters, never looks across positions (the short convolution, which every selective mixer opens with, is the one exception)."""

from statescan.layers.conv import CausalConv1d
from statescan.layers.delta import DeltaProjection, init_delta_bias
from statescan.layers.embedding import Embedding
from statescan.layers.linear import Linear
from statescan.layers.mlp import MLP, GatedMLP
from statescan.layers.moe import load_balancing_loss, router_z_loss
from statescan.layers.norm import GatedRMSNorm, LayerNorm, OffsetRMSNorm, RMSNorm
from statescan.layers.quantized import QuantLinear

__all__ = [
    "MLP",
    "CausalConv1d",
    "DeltaProjection",
    "Embedding",
    "GatedMLP",
    "GatedRMSNorm",
    "LayerNorm",
    "Linear",
    "OffsetRMSNorm",
    "QuantLinear",
    "RMSNorm",
    "init_delta_bias",
    "load_balancing_loss",
    "router_z_loss",
]
