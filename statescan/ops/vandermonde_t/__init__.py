"""What an input leaves behind in each mode: s_n = sum_{l<L} u_l exp((L-1-l) z_n), the transpose of ``vandermonde``.

The final state of a diagonal linear time-invariant layer, without walking through the states before it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.ops.dispatch import Op

op = Op("vandermonde_t", tolerance={torch.float64: 1e-12, torch.float32: 5e-6})


def vandermonde_t(u: Tensor, z: Tensor) -> Tensor:
    """Collect the modes; the formula stands above.

    Args:
        u: input, real, (B, L, D).
        z: log of the decay of one step, complex, (D, N); complex128 keeps the phase at long lengths.

    Returns:
        s (B, D, N), complex, of u's precision.
    """
    if u.ndim != 3 or z.ndim != 2 or z.shape[0] != u.shape[2]:
        raise ValueError(f"u must be (B, L, D) and z (D, N); got {tuple(u.shape)} and {tuple(z.shape)}")
    if u.dtype not in (torch.float32, torch.float64) or not z.is_complex():
        raise ValueError(f"u must be float32 or float64 and z complex; got {u.dtype} and {z.dtype}")
    return op(u=u, z=z)


from statescan.ops.vandermonde_t import portable, reference  # noqa: E402, F401 - they register themselves
