"""Two short tables, as in ``vandermonde``: blocks of T positions, then the blocks. Zeros that pad the front leave nothing behind."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.ops.vandermonde.portable import powers, split
from statescan.ops.vandermonde_t import op


@op.implementation("portable")
def portable(u: Tensor, z: Tensor) -> Tensor:
    """s (B, D, N)."""
    batch, length, width = u.shape
    dtype = torch.complex128 if u.dtype == torch.float64 else torch.complex64
    inner, outer = split(length)
    blocks = F.pad(u.mT, (outer * inner - length, 0)).view(batch, width, outer, inner)
    fine = powers(z, inner, 1).flip(-2).to(dtype)
    coarse = powers(z, outer, inner).flip(-2).to(dtype)
    return ((blocks.to(dtype) @ fine) * coarse).sum(-2)
