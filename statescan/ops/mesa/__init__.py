"""The mesa layer: linear attention that reads out the regularised least-squares fit of the whole, decaying past.

Per head, with keys of K and values of V channels; g is the logarithm of the decay, ridge (K) positive::

    G_t = e^{g_t} G_{t-1} + beta_t k_t k_t^T          (K, K)
    S_t = e^{g_t} S_{t-1} + beta_t k_t v_t^T          (K, V)
    y_t = S_t^T (G_t + Diag(ridge))^{-1} q_t

All but the reference solve by conjugate gradients, several positions side by side, and stop after ``iterations``: in exact arithmetic K
of them are enough, and fewer where the matrix is near its diagonal. The derivative is that of the exact solution: another solve, not the
unrolled iteration. The state is float32 (float64 for float64 inputs).

Paper: von Oswald et al., "MesaNet: Sequence Modeling by Locally Optimal Test-Time Training", 2025, https://arxiv.org/abs/2506.05233.
"""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.ops.checks import broadcast_state, check_positive, check_shape, state_dtype
from statescan.ops.dispatch import Op
from statescan.timeline import Timeline

op = Op("mesa", tolerance={torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 4e-2})

Memories = tuple[Tensor, Tensor]
"""G (B, H, K, K) and S (B, H, K, V)."""


def mesa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    ridge: Tensor,
    *,
    iterations: int = 30,
    state: Memories | None = None,
    timeline: Timeline | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Memories]:
    """Run the recurrence; the formula stands above.

    Args:
        q: queries, (B, L, H, K).
        k: keys, of q's shape; nothing is normalised here.
        v: values, (B, L, H, V).
        beta: strength of each write, (B, L, H), not negative.
        log_decay: g, not positive, (B, L, H).
        ridge: (H, K), positive.
        iterations: steps of the conjugate gradients, at most. The reference solves exactly.
        state: incoming G (B, H, K, K), positive semidefinite (its symmetric part is solved with), and S (B, H, K, V); zeros if None.
        timeline: resets (to zeros) and mask.
        return_state: return the last state too.

    Returns:
        y of v's shape and dtype, or ``(y, state)``. Masked outputs are zero.
    """
    check_shape("v", v, ("B", "L", "H", "V"))
    batch, length, heads, width = v.shape
    check_shape("q", q, (batch, length, heads, "K"))
    keys = q.shape[-1]
    check_shape("k", k, q.shape)
    check_shape("beta", beta, (batch, length, heads))
    check_shape("log_decay", log_decay, (batch, length, heads))
    check_shape("ridge", ridge, (heads, keys))
    check_positive(iterations=iterations)
    line = Timeline() if timeline is None else timeline.without_interval("mesa").expand(batch, length)
    shapes = {"G": (batch, heads, keys, keys), "S": (batch, heads, keys, width)}
    G, S = (
        broadcast_state(f"state {name}", tensor, shape, state_dtype(v), v.device)
        for (name, shape), tensor in zip(shapes.items(), (None, None) if state is None else state, strict=True)
    )
    y, *last = op(
        q=q, k=k, v=v, beta=beta, log_decay=log_decay, ridge=ridge, iterations=iterations, G=G, S=S, reset=line.reset,
        mask=line.mask,
    )  # fmt: skip
    return (y, (last[0], last[1])) if return_state else y


from statescan.ops.mesa import native, portable, reference  # noqa: E402, F401 - they register themselves
