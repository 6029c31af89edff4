"""Long convolution through the Fourier transform, causal or two-sided, each channel with its own kernel.

    y_t = sum_{s<=t} k_{t-s} u_s  +  sum_{s>t} back_{s-t-1} u_s

The backward kernel starts at the NEXT position, so the present is counted once. In float32 the transform's rounding leaks about 1e-7 of
the largest values into every output, the causal past included; in float64 about 1e-16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.ops.checks import check_shape
from statescan.ops.dispatch import Op

op = Op("fft_conv", tolerance={torch.float64: 1e-12, torch.float32: 1e-5})


def fft_conv(u: Tensor, k: Tensor, back: Tensor | None = None) -> Tensor:
    """Convolve; the formula stands above.

    Args:
        u: input, (B, L, D), float32 or float64.
        k: kernel of the past and present, (D, K), of u's dtype; beyond L it meets nothing.
        back: kernel of the future, (D, K'), or None.

    Returns:
        y (B, L, D), of u's dtype.
    """
    check_shape("u", u, ("B", "L", "D"))
    check_shape("k", k, (u.shape[2], "K"))
    if back is not None:
        check_shape("back", back, (u.shape[2], "K'"))
    kinds = {u.dtype, k.dtype} | (set() if back is None else {back.dtype})
    if len(kinds) > 1 or u.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"input and kernels must all be float32 or all be float64; got {', '.join(map(str, kinds))}")
    return op(u=u, k=k, back=back)


from statescan.ops.fft_conv import portable, reference  # noqa: E402, F401 - they register themselves
