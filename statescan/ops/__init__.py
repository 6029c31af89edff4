"""Maths on tensors; owns no parameters. One folder an op: signature and checks, ``reference``, ``portable``, ``native``, ``cases``."""

from statescan.ops.causal_conv1d import causal_conv1d
from statescan.ops.diagonal_scan import diagonal_scan
from statescan.ops.selective_scan import selective_scan
from statescan.ops.ssd import ssd

__all__ = ["causal_conv1d", "diagonal_scan", "selective_scan", "ssd"]
