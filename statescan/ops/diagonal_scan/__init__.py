"""The elementary linear recurrence, real or complex: h_t = a_t * h_{t-1} + b_t, elementwise.

Returns every h_t. Mixers that read the state out (S5, LRU, RG-LRU, S4D's scan mode) multiply afterwards.
"""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.ops.checks import broadcast_state, state_dtype
from statescan.ops.dispatch import Op
from statescan.timeline import Timeline

op = Op(
    "diagonal_scan",
    tolerance={
        torch.float64: 1e-10, torch.complex128: 1e-10, torch.float32: 1e-5, torch.complex64: 1e-5, torch.bfloat16: 2e-2,
    },
)  # fmt: skip


def diagonal_scan(
    a: Tensor,
    b: Tensor,
    *,
    state: Tensor | None = None,
    reset_to: Tensor | None = None,
    timeline: Timeline | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the recurrence above.

    Args:
        a: decay, broadcastable to b: (B, L, *M), (1, L, *M), (1, 1, *M) ... with the same number of axes. Complex if b is, or real.
        b: input, (B, L, *M) for any trailing shape M; real or complex.
        state: h before the first position, (B, *M); zeros if None.
        reset_to: h after a reset, (*M) or (B, *M); zeros if None.
        timeline: resets and mask. An interval belongs into ``a`` and ``b``; giving one here raises.
        return_state: return the last h too.

    Returns:
        h of b's shape and dtype (a bfloat16 b accumulates in float32), or ``(h, state)``. Masked outputs are zero.
    """
    if b.ndim < 3 or a.ndim != b.ndim:
        raise ValueError(f"a and b must both be (B, L, *M) with at least one axis M; got {tuple(a.shape)} and {tuple(b.shape)}")
    if any(i not in (1, j) for i, j in zip(a.shape, b.shape, strict=True)):
        raise ValueError(f"a of shape {tuple(a.shape)} does not broadcast to b of shape {tuple(b.shape)}")
    if a.is_complex() and not b.is_complex():
        raise ValueError("a complex decay needs a complex input: convert b")
    batch, length = b.shape[:2]
    line = Timeline() if timeline is None else timeline.without_interval("diagonal_scan").expand(batch, length)
    dtype = state_dtype(b)
    shape = (batch, *b.shape[2:])
    state = broadcast_state("state", state, shape, dtype, b.device)
    reset_to = None if line.reset is None else broadcast_state("reset_to", reset_to, shape, dtype, b.device)
    h, last = op(a=a, b=b, state=state, reset_to=reset_to, reset=line.reset, mask=line.mask)
    return (h, last) if return_state else h


from statescan.ops.diagonal_scan import native, portable, reference  # noqa: E402, F401 - they register themselves
