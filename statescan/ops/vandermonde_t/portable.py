"""Two short tables, as in ``vandermonde``: blocks of T positions, then the blocks. Zeros that pad the front leave nothing behind."""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.ops.vandermonde.portable import powers, split
from statescan.ops.vandermonde_t import op


@op.implementation("portable")
def portable(u: Tensor, z: Tensor) -> Tensor:
    """s (B, D, N)."""
    batch, length, width = u.shape
    dtype = torch.complex128 if u.dtype == torch.float64 else torch.complex64
    inner, outer = split(length)
    # written by index, not padded and reshaped: that the blocks cover L is more than a tracer can prove
    place = torch.arange(length, device=u.device) + (outer * inner - length)
    blocks = u.new_zeros(outer, inner, batch, width).index_put((place // inner, place % inner), u.transpose(0, 1))
    blocks = blocks.permute(2, 3, 0, 1)
    fine = powers(z, inner, 1).flip(-2).to(dtype)
    coarse = powers(z, outer, inner).flip(-2).to(dtype)
    return ((blocks.to(dtype) @ fine) * coarse).sum(-2)
