"""The norm as it is written, one group at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.ops.checks import state_dtype
from statescan.ops.rms_norm import op


@op.implementation("reference")
def reference(x: Tensor, weight: Tensor | None, z: Tensor | None, groups: int, eps: float, norm_before_gate: bool) -> Tensor:
    """y of x's shape."""
    dtype = state_dtype(x)
    y = x.to(dtype)
    gate = None if z is None else z.to(dtype) * torch.sigmoid(z.to(dtype))
    if gate is not None and not norm_before_gate:
        y = y * gate
    y = torch.cat([part / torch.sqrt(part.square().mean(-1, keepdim=True) + eps) for part in y.chunk(groups, dim=-1)], dim=-1)
    if weight is not None:
        y = y * weight.to(dtype)
    if gate is not None and norm_before_gate:
        y = y * gate
    return y.to(x.dtype if weight is None else weight.dtype)
