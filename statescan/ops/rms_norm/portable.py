"""The norm with torch's own, on any device."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from statescan.ops.checks import state_dtype
from statescan.ops.rms_norm import op


@op.implementation("portable")
def portable(x: Tensor, weight: Tensor | None, z: Tensor | None, groups: int, eps: float, norm_before_gate: bool) -> Tensor:
    """y of x's shape."""
    dtype = state_dtype(x)
    scale = None if weight is None else weight.to(dtype)
    gate = None if z is None else F.silu(z.to(dtype))
    y = x.to(dtype)
    if gate is not None and not norm_before_gate:
        y = y * gate
    if groups == 1:
        y = F.rms_norm(y, y.shape[-1:], scale, eps)
    else:
        parts = y.unflatten(-1, (groups, -1))
        y = F.rms_norm(parts, parts.shape[-1:], None, eps).flatten(-2)
        y = y if scale is None else y * scale
    if gate is not None and norm_before_gate:
        y = y * gate
    return y.to(x.dtype if weight is None else weight.dtype)
