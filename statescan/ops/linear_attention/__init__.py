"""Linear attention: keys and values are summed into a matrix state, under no decay, one a head, or one a key channel.

Per head, with keys of K and values of V channels; g is the logarithm of the decay::

    S_t = Diag(e^{g_t}) S_{t-1} + k_t v_t^T      (K, V)
    y_t = scale S_t^T q_t

A constant g is RetNet, one a head and position simple GLA (and, with k = B, v = delta x and g = delta A, SSD), one a key channel GLA and,
with k = 1 - e^g, HGRN2. The state is float32 (float64 for float64 inputs).

Papers: Katharopoulos et al., "Transformers are RNNs", 2020, https://arxiv.org/abs/2006.16236; Sun et al., "Retentive Network", 2023,
https://arxiv.org/abs/2307.08621; Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient Training", 2023,
https://arxiv.org/abs/2312.06635.
"""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.ops.checks import broadcast_state, check_shape, group, state_dtype
from statescan.ops.dispatch import Op
from statescan.timeline import Timeline

op = Op("linear_attention", tolerance={torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2})


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    *,
    scale: float | None = None,
    state: Tensor | None = None,
    timeline: Timeline | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the recurrence; the formula stands above.

    Args:
        q: queries, (B, L, G, K) for G groups of H/G neighbouring heads (G = H: one each).
        k: keys, of q's shape.
        v: values, (B, L, H, V).
        log_decay: g, not positive: (H,), (B, L, H), or (B, L, H, K); None does not decay.
        scale: of the output; None is K^-0.5.
        state: incoming state, (B, H, K, V); zeros if None.
        timeline: resets (to zeros) and mask.
        return_state: return the last state too, (B, H, K, V).

    Returns:
        y of v's shape and dtype, or ``(y, state)``. Masked outputs are zero.
    """
    check_shape("v", v, ("B", "L", "H", "V"))
    batch, length, heads, width = v.shape
    keys = q.shape[-1]
    q, k = group("q", q, batch, length, keys, heads), group("k", k, batch, length, keys, heads)
    if q.shape != k.shape:
        raise ValueError(f"q and k must have the same groups; got {tuple(q.shape)} and {tuple(k.shape)}")
    log_decay = decay_of(log_decay, batch, length, heads, keys)
    line = Timeline() if timeline is None else timeline.without_interval("linear_attention").expand(batch, length)
    state = broadcast_state("state", state, (batch, heads, keys, width), state_dtype(v), v.device)
    scale = keys**-0.5 if scale is None else float(scale)
    y, last = op(q=q, k=k, v=v, log_decay=log_decay, scale=scale, state=state, reset=line.reset, mask=line.mask)
    return (y, last) if return_state else y


def decay_of(log_decay: Tensor | None, batch: int, length: int, heads: int, keys: int) -> Tensor | None:
    """Check a decay and bring it to (B, L, H, 1 or K)."""
    if log_decay is None:
        return None
    if log_decay.ndim == 1:
        check_shape("log_decay", log_decay, (heads,))
        return log_decay.unsqueeze(-1).expand(batch, length, heads, 1)
    check_shape("log_decay", log_decay, (batch, length, heads, keys)[: max(3, log_decay.ndim)])
    return log_decay.unsqueeze(-1) if log_decay.ndim == 3 else log_decay


from statescan.ops.linear_attention import native, portable, reference  # noqa: E402, F401 - they register themselves
