"""State-space duality (Mamba-2): one scalar decay a head, so the scan is a masked matrix product by chunks.

Per head h of group g(h), with P channels and N states::

    delta_t[h] = clamp(softplus(delta_t[h] + delta_bias[h]), *delta_limit) * interval_t       (softplus only with ``delta_softplus``)
    H_t = exp(delta_t A[h]) H_{t-1} + delta_t x_t B_t^T                                          (P, N)
    y_t = H_t C_t + D[h] x_t

The state is float32 (float64 for float64 inputs). The mixer applies its gate after a norm, so there is no gate here.

Paper: Dao and Gu, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space Duality", 2024,
https://arxiv.org/abs/2405.21060.
"""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.ops.checks import broadcast_state, check_shape, group, state_dtype
from statescan.ops.dispatch import Op
from statescan.timeline import Timeline

op = Op("ssd", tolerance={torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2})


def ssd(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    delta_limit: tuple[float, float] = (0.0, float("inf")),
    state: Tensor | None = None,
    reset_to: Tensor | None = None,
    timeline: Timeline | None = None,
    chunk_size: int | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the scan; the formula stands above.

    Args:
        x: input, (B, L, H, P).
        delta: step, (B, L, H): positive, or raw with ``delta_softplus``.
        A: continuous, negative, (H,).
        B: input map, (B, L, N), or (B, L, G, N) for G groups of H/G neighbouring heads.
        C: output map, of B's shape.
        D: skip, (H,) or (H, P).
        delta_bias: (H,), added in float32.
        delta_softplus: apply softplus to the biased delta.
        delta_limit: clamp of the positive delta, before the interval multiplies it.
        state: incoming state, (B, H, P, N); zeros if None.
        reset_to: the state after a reset, (H, P, N) or (B, H, P, N); zeros if None.
        timeline: resets, mask and interval.
        chunk_size: positions a chunk; None lets the implementation choose. It changes no value beyond rounding.
        return_state: return the last state too, (B, H, P, N).

    Returns:
        y of shape (B, L, H, P) and x's dtype, or ``(y, state)``. Masked outputs are zero.
    """
    check_shape("x", x, ("B", "L", "H", "P"))
    batch, length, heads, head_dim = x.shape
    check_shape("delta", delta, (batch, length, heads))
    check_shape("A", A, (heads,))
    n = B.shape[-1]
    B, C = group("B", B, batch, length, n, heads), group("C", C, batch, length, n, heads)
    if B.shape != C.shape:
        raise ValueError(f"B and C must have the same groups; got {tuple(B.shape)} and {tuple(C.shape)}")
    if D is not None:
        D = D.unsqueeze(-1).expand(-1, head_dim) if D.ndim == 1 else D
        check_shape("D", D, (heads, head_dim))
    if delta_bias is not None:
        check_shape("delta_bias", delta_bias, (heads,))
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1; got {chunk_size}")
    dtype = state_dtype(x)
    line = Timeline() if timeline is None else timeline.expand(batch, length)
    shape = (batch, heads, head_dim, n)
    state = broadcast_state("state", state, shape, dtype, x.device)
    reset_to = None if line.reset is None else broadcast_state("reset_to", reset_to, shape, dtype, x.device)
    y, last = op(
        x=x, delta=delta, A=A, B=B, C=C, D=D, delta_bias=delta_bias, delta_softplus=delta_softplus, delta_limit=delta_limit,
        state=state, reset_to=reset_to, reset=line.reset, mask=line.mask, interval=line.interval, chunk_size=chunk_size,
    )  # fmt: skip
    return (y, last) if return_state else y


from statescan.ops.ssd import native, portable, reference, wrapped  # noqa: E402, F401 - they register themselves
