"""A Linear's product in float32 without gradients, by the faster of torch's two libraries."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.ops import native_gate as gate


@cache
def onednn_is_faster() -> bool:
    """On AMD's processors with AVX-512, where MKL, which torch calls for float32, has nothing but kernels for AVX2."""
    has_op = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return has_op and gate.module is not None and gate.module.amd() and torch.backends.cpu.get_cpu_capability() == "AVX512"


def suits(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> bool:
    """Whether these are plain tensors of this type on the CPU that no gradient, compiler or autocast is after."""
    tensors = [t for t in (x, weight, bias) if t is not None]
    if any(type(t) not in (Tensor, torch.nn.Parameter) or t.dtype != dtype or t.device.type != "cpu" for t in tensors):
        return False
    grad = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return not grad and not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``: x (..., I), weight (O, I), bias (O,) -> (..., O)."""
    if onednn_is_faster() and x.numel() and suits(x, weight, bias, torch.float32):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)
