"""The sum as it stands, one position after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.ops.vandermonde_t import op


@op.implementation("reference")
def reference(u: Tensor, z: Tensor) -> Tensor:
    """s (B, D, N)."""
    length = u.shape[1]
    dtype = torch.complex128 if u.dtype == torch.float64 else torch.complex64
    s = torch.zeros(u.shape[0], *z.shape, dtype=dtype, device=u.device)
    for position in range(length):
        s = s + u[:, position].unsqueeze(-1) * torch.exp((length - 1 - position) * z).to(dtype)
    return s
