"""The selective scan (S6): a diagonal state-space model whose step, input and output maps depend on the position.

Per channel d and state n, with group g(d) of the channel::

    delta_t[d] = sum_r delta_weight[d, r] delta_t[r]                     (only with ``delta_weight``)
    delta_t[d] = softplus(delta_t[d] + delta_bias[d]) * interval_t       (softplus only with ``delta_softplus``; interval defaults to 1)
    h_t[d, n]  = exp(delta_t[d] A[d, n]) h_{t-1}[d, n] + delta_t[d] B_t[g, n] x_t[d]
    y_t[d]     = (sum_n C_t[g, n] h_t[d, n] + D[d] x_t[d]) * silu(z_t[d])     (D and z where given)

``A`` is discretised exactly (zero-order hold), ``B`` by Euler's rule, as published. The state is float32 (float64 for float64 inputs).

Paper: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, https://arxiv.org/abs/2312.00752.
"""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.ops.checks import broadcast_state, check_shape, group, state_dtype
from statescan.ops.dispatch import Op
from statescan.timeline import Timeline

op = Op("selective_scan", tolerance={torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2})


def selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    z: Tensor | None = None,
    delta_weight: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    state: Tensor | None = None,
    reset_to: Tensor | None = None,
    timeline: Timeline | None = None,
    return_state: bool = False,
    return_states: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """Run the scan; the formula stands above.

    Args:
        x: input, (B, L, E).
        delta: step, (B, L, E): positive, or raw (before bias and softplus) with ``delta_softplus``; (B, L, R) with ``delta_weight``.
        A: continuous, negative, (E, N).
        B: input map, (B, L, N), or (B, L, G, N) for G groups of E/G neighbouring channels.
        C: output map, of B's shape.
        D: skip, (E,).
        z: gate, (B, L, E).
        delta_weight: (E, R), by which ``delta`` is multiplied, as published. Without gradients the native kernel multiplies float32
            numbers while it scans, so that the steps never cross memory; else it is torch's product, in the wider of the two dtypes,
            and its last bit may depend on the number of threads.
        delta_bias: (E,), added to ``delta`` in float32.
        delta_softplus: apply softplus to the biased delta.
        state: incoming state, (B, E, N); zeros if None.
        reset_to: the state after a reset, (E, N) or (B, E, N); zeros if None.
        timeline: resets, mask and interval.
        return_state: return the last state too, (B, E, N).
        return_states: return all states too, (B, L, E, N): the one option whose memory is L x E x N. At a masked position it is the
            state held there.

    Returns:
        y of shape (B, L, E) and x's dtype; with the options ``(y, state)``, ``(y, states)`` or ``(y, state, states)``. Masked outputs
        are zero.
    """
    check_shape("x", x, ("B", "L", "E"))
    batch, length, width = x.shape
    check_shape("A", A, (width, "N"))
    n = A.shape[1]
    if delta_weight is not None:
        check_shape("delta_weight", delta_weight, (width, "R"))
    check_shape("delta", delta, (batch, length, width if delta_weight is None else delta_weight.shape[1]))
    B, C = group("B", B, batch, length, n, width), group("C", C, batch, length, n, width)
    if B.shape != C.shape:
        raise ValueError(f"B and C must have the same groups; got {tuple(B.shape)} and {tuple(C.shape)}")
    for name, tensor, shape in (("D", D, (width,)), ("delta_bias", delta_bias, (width,)), ("z", z, (batch, length, width))):
        if tensor is not None:
            check_shape(name, tensor, shape)
    dtype = state_dtype(x)
    line = Timeline() if timeline is None else timeline.expand(batch, length)
    state = broadcast_state("state", state, (batch, width, n), dtype, x.device)
    reset_to = None if line.reset is None else broadcast_state("reset_to", reset_to, (batch, width, n), dtype, x.device)
    y, last, states = op(
        x=x, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_weight=delta_weight, delta_bias=delta_bias, delta_softplus=delta_softplus,
        state=state, reset_to=reset_to, reset=line.reset, mask=line.mask, interval=line.interval, return_states=return_states,
    )  # fmt: skip
    extra = ((last,) if return_state else ()) + ((states,) if return_states else ())
    return (y, *extra) if extra else y


from statescan.ops.selective_scan import native, portable, reference, triton, wrapped  # noqa: E402, F401 - they register themselves
