"""Maths on tensors; owns no parameters. One folder an op: signature and checks, ``cases``, and the
implementations: ``reference``, ``portable``, ``native`` (C++), ``triton``, ``wrapped`` (other projects')."""

from statescan.ops.associative_scan import associative_scan
from statescan.ops.causal_conv1d import causal_conv1d
from statescan.ops.companion_kernel import companion_kernel
from statescan.ops.delta_rule import delta_rule
from statescan.ops.diagonal_scan import diagonal_scan
from statescan.ops.dplr_kernel import dplr_kernel
from statescan.ops.fft_conv import fft_conv
from statescan.ops.linear_attention import linear_attention
from statescan.ops.linear_system import linear_system
from statescan.ops.log_linear import log_linear
from statescan.ops.mamba3 import mamba3
from statescan.ops.mesa import mesa
from statescan.ops.mlstm import mlstm
from statescan.ops.quantized_linear import quantized_linear
from statescan.ops.rms_norm import rms_norm
from statescan.ops.rnnt import rnnt
from statescan.ops.selective_scan import selective_scan
from statescan.ops.slstm import slstm
from statescan.ops.ssd import ssd
from statescan.ops.vandermonde import vandermonde
from statescan.ops.vandermonde_t import vandermonde_t

__all__ = [
    "associative_scan",
    "causal_conv1d",
    "companion_kernel",
    "delta_rule",
    "diagonal_scan",
    "dplr_kernel",
    "fft_conv",
    "linear_attention",
    "linear_system",
    "log_linear",
    "mamba3",
    "mesa",
    "mlstm",
    "quantized_linear",
    "rms_norm",
    "rnnt",
    "selective_scan",
    "slstm",
    "ssd",
    "vandermonde",
    "vandermonde_t",
]
