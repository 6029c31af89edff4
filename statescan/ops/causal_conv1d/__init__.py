"""Depthwise causal convolution over a few taps, with a state: what stands before the scan in most selective mixers.

    y_t[e] = act(bias[e] + sum_{k=0..K-1} weight[e, k] x_{t-(K-1)+k}[e])

where the sum runs over existing positions since the last reset; what came before is zero, or the incoming state. K is small (2 to 8), so
this is a stencil, not a transform.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from statescan.ops.checks import check_shape
from statescan.ops.dispatch import Op
from statescan.timeline import Timeline

op = Op("causal_conv1d", tolerance={torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}, cheap=True)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Literal["silu"] | None = None,
    state: Tensor | None = None,
    timeline: Timeline | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolve; the formula stands above.

    Args:
        x: input, (B, L, E).
        weight: taps, (E, K); the last one meets the current position.
        bias: (E,).
        activation: "silu" or None.
        state: the last K-1 existing inputs, oldest first, (B, K-1, E), in any dtype; zeros if None.
        timeline: resets and mask (the interval means nothing here and is ignored).
        return_state: return the state after the last position too, (B, K-1, E), in x's dtype.

    Returns:
        y of x's shape and dtype, or ``(y, state)``. Masked outputs are zero.
    """
    check_shape("x", x, ("B", "L", "E"))
    batch, length, width = x.shape
    check_shape("weight", weight, (width, "K"))
    if activation not in (None, "silu"):
        raise ValueError(f"activation must be 'silu' or None; got {activation!r}")
    if bias is not None:
        check_shape("bias", bias, (width,))
    taps = weight.shape[1]
    if state is None:
        state = x.new_zeros(batch, taps - 1, width)
    check_shape("state", state, (batch, taps - 1, width))
    line = Timeline() if timeline is None else timeline.expand(batch, length)
    y, last = op(x=x, weight=weight, bias=bias, activation=activation, state=state.to(x.dtype), reset=line.reset, mask=line.mask)
    return (y, last) if return_state else y


from statescan.ops.causal_conv1d import native, portable, reference, triton, wrapped  # noqa: E402, F401 - they register themselves
