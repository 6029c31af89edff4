"""Maths on tensors; owns no parameters. One folder an op: signature and checks, ``reference``, ``portable``, ``native``, ``cases``."""

from statescan.ops.causal_conv1d import causal_conv1d
from statescan.ops.diagonal_scan import diagonal_scan
from statescan.ops.fft_conv import fft_conv
from statescan.ops.selective_scan import selective_scan
from statescan.ops.ssd import ssd
from statescan.ops.vandermonde import vandermonde
from statescan.ops.vandermonde_t import vandermonde_t

__all__ = ["causal_conv1d", "diagonal_scan", "fft_conv", "selective_scan", "ssd", "vandermonde", "vandermonde_t"]
