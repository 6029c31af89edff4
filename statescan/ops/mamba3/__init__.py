"""Mamba-3's recurrence: a matrix state under a trapezoidal step, whose keys and queries turn, with R writes and R queries a position.

Per head of P channels and N states; delta is the step, g the logarithm of the decay, lambda the share of the step that falls on its end::

    Theta_t = Theta_{t-1} + speed_t delta_t                                              (T)
    k_r = rotate(k_r + k_bias_r, Theta),   q_r = rotate(q_r + q_bias_r, Theta),   u_r = v * v_weight_r
    S_t = e^{g_t} (S_{t-1} + (1 - lambda_t) delta_t sum_r u_{r,t-1} k_{r,t-1}^T) + lambda_t delta_t sum_r u_{r,t} k_{r,t}^T     (P, N)
    o_r = S_t q_r + D u_r,   y = sum_r y_weight_r * o_r * silu(z * z_weight_r)

Pair i of the states turns by Theta_i, for the first T of the N/2 pairs. The state is float32 (float64 for float64 inputs), the phases are
summed in float64: after thousands of turns float32 has lost the angle.

Paper: "Mamba-3: Improved Sequence Modeling using State Space Principles", 2026, https://openreview.net/forum?id=HwCvaJOiCj.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from statescan.ops.checks import broadcast_state, check_shape, state_dtype
from statescan.ops.dispatch import Op
from statescan.registry import nearest
from statescan.timeline import Timeline

op = Op("mamba3", tolerance={torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2})

Carried = tuple[Tensor, Tensor, Tensor, Tensor]
"""Theta (B, H, T), within one turn; S with all writes so far, (B, H, P, N); the last existing keys, turned, (B, R, H, N), and values
(B, H, P)."""


def mamba3(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    delta: Tensor,
    mix: Tensor,
    speed: Tensor,
    q_bias: Tensor,
    k_bias: Tensor,
    D: Tensor,
    *,
    v_weight: Tensor | None = None,
    z: Tensor | None = None,
    z_weight: Tensor | None = None,
    y_weight: Tensor | None = None,
    layout: Literal["pairs", "halves"] = "pairs",
    state: Carried | None = None,
    timeline: Timeline | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Carried]:
    """Run the recurrence; the formula stands above.

    Args:
        q: queries, (B, L, R, G, N) for G groups of H/G neighbouring heads.
        k: keys, of q's shape.
        v: values, (B, L, H, P).
        log_decay: g, not positive, (B, L, H).
        delta: steps, not negative, (B, L, H).
        mix: lambda, (B, L, H).
        speed: (B, L, T), in radians a unit of the step; 0 <= T <= N/2.
        q_bias: (H, R, N).
        k_bias: (H, R, N).
        D: (H,).
        v_weight: (H, R, P); ones if None.
        z: gate, (B, L, H, P). None returns o.
        z_weight: (H, R, P); ones if None.
        y_weight: (H, R, P); ones if None.
        layout: pair i is the states (2i, 2i + 1), or (i, i + N/2).
        state: incoming state; zeros if None.
        timeline: resets (to zeros) and mask.
        return_state: return the last state too.

    Returns:
        y, (B, L, H, P), or o, (B, L, R, H, P), where there is no gate, of v's dtype; or ``(y, state)``. Masked outputs are zero.
    """
    check_shape("v", v, ("B", "L", "H", "P"))
    batch, length, heads, width = v.shape
    check_shape("q", q, (batch, length, "R", "G", "N"))
    check_shape("k", k, tuple(q.shape))
    rank, groups, keys = q.shape[2:]
    if heads % groups:
        raise ValueError(f"q has {groups} groups, which do not divide {heads} heads")
    for name, tensor in {"log_decay": log_decay, "delta": delta, "mix": mix}.items():
        check_shape(name, tensor, (batch, length, heads))
    for name, tensor in {"q_bias": q_bias, "k_bias": k_bias}.items():
        check_shape(name, tensor, (heads, rank, keys))
    check_shape("D", D, (heads,))
    check_shape("speed", speed, (batch, length, "T"))
    if keys % 2 or speed.shape[2] > keys // 2:
        raise ValueError(f"states turn in pairs: N must be even and T at most N/2; got N={keys} and T={speed.shape[2]}")
    for name, weight in {"v_weight": v_weight, "z_weight": z_weight, "y_weight": y_weight}.items():
        if weight is not None:
            check_shape(name, weight, (heads, rank, width))
    if z is not None:
        check_shape("z", z, tuple(v.shape))
    elif z_weight is not None or y_weight is not None:
        raise ValueError("z_weight and y_weight belong to a gate, but z is None: the output has not been summed over the queries")
    if layout not in ("pairs", "halves"):
        raise ValueError(f"there is no layout {layout!r}{nearest(layout, ('pairs', 'halves'))}")
    line = Timeline() if timeline is None else timeline.without_interval("mamba3").expand(batch, length)
    shapes = ((batch, heads, speed.shape[2]), (batch, heads, width, keys), (batch, rank, heads, keys), (batch, heads, width))
    angle, ssm, last_k, last_v = (
        broadcast_state(f"state {name}", tensor, shape, state_dtype(v), v.device)
        for name, tensor, shape in zip(("angle", "ssm", "k", "v"), (None,) * 4 if state is None else state, shapes, strict=True)
    )
    y, *last = op(
        q=q, k=k, v=v, log_decay=log_decay, delta=delta, mix=mix, speed=speed, q_bias=q_bias, k_bias=k_bias, D=D, v_weight=v_weight, z=z,
        z_weight=z_weight, y_weight=y_weight, angle=angle, ssm=ssm, last_k=last_k, last_v=last_v, reset=line.reset, mask=line.mask,
        layout=layout,
    )  # fmt: skip
    return (y, (last[0], last[1], last[2], last[3])) if return_state else y


from statescan.ops.mamba3 import native, portable, reference  # noqa: E402, F401 - they register themselves
