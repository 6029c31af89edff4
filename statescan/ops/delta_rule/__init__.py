"""The delta rule: a write replaces what a matrix state holds under a key, instead of adding to it.

Per head, with keys of K and values of V channels. A position first decays the state, then writes n times, then reads once::

    S <- Diag(e^{g_t}) S_{t-1}
    S <- S + beta_j k_j (v_j - S^T k_j)^T        for each write j = 0..n-1       (K, V)
    y_t = scale S^T q_t

No g and n = 1 is DeltaNet, g one a head Gated DeltaNet, one a key channel Kimi Delta Attention, n > 1 DeltaProduct. beta in (0, 2) makes
negative eigenvalues. What a write takes away need not be what it puts in: with ``read`` in place of ``beta`` a position is::

    S <- Diag(e^{g_t}) S_{t-1} + k_0 (v_0 - S_{t-1}^T read_0)^T;     S <- S + k_j (v_j - S^T read_j)^T     for each further write

``read_0`` meets the state before its decay, so that no caller divides by one: ``read_0 = beta e^{g} * k`` is the rule above, and
diagonal-plus-low-rank, S = (Diag(w) + b a^T) S + k v^T as in RWKV-7, is two writes: key b, value 0, read -a; then key k, value v, read 0.
The state is float32 (float64 for float64 inputs).

Papers: Yang et al., "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", 2024, https://arxiv.org/abs/2406.06484;
Yang et al., "Gated Delta Networks", 2024, https://arxiv.org/abs/2412.06464; Siems et al., "DeltaProduct", 2025,
https://arxiv.org/abs/2502.10297; Kimi Team, "Kimi Linear", 2025, https://arxiv.org/abs/2510.26692; Peng et al., "RWKV-7", 2025,
https://arxiv.org/abs/2503.14456.
"""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.ops.checks import broadcast_state, check_shape, group, state_dtype
from statescan.ops.dispatch import Op
from statescan.ops.linear_attention import decay_of
from statescan.timeline import Timeline

op = Op("delta_rule", tolerance={torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2})


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None = None,
    log_decay: Tensor | None = None,
    *,
    read: Tensor | None = None,
    scale: float | None = None,
    state: Tensor | None = None,
    timeline: Timeline | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the recurrence; the formulas stand above. Several writes a position are an axis after the length: (B, L, n, ...).

    Args:
        q: queries, (B, L, G, K) for G groups of H/G neighbouring heads (G = H: one each).
        k: keys, (B, L, G, K) or (B, L, n, G, K). The rule is stable for unit keys and beta in [0, 2]; nothing is normalised here.
        v: values, (B, L, H, V) or (B, L, n, H, V).
        beta: strength of each write, (B, L, H) or (B, L, n, H).
        log_decay: g, not positive: (H,), (B, L, H), or (B, L, H, K); None does not decay.
        read: in place of beta, (B, L, H, K) or (B, L, n, H, K).
        scale: of the output; None is K^-0.5.
        state: incoming state, (B, H, K, V); zeros if None.
        timeline: resets (to zeros) and mask.
        return_state: return the last state too, (B, H, K, V).

    Returns:
        y of shape (B, L, H, V) and v's dtype, or ``(y, state)``. Masked outputs are zero.
    """
    if (beta is None) == (read is None):
        raise ValueError("delta_rule takes beta (the delta rule) or read (what each write takes away), and not both")
    v = v if v.ndim == 5 else v.unsqueeze(2)
    check_shape("v", v, ("B", "L", "n", "H", "V"))
    batch, length, writes, heads, width = v.shape
    keys = q.shape[-1]
    q = group("q", q, batch, length, keys, heads)
    k = k if k.ndim == 5 else k.unsqueeze(2)
    check_shape("k", k, (batch, length, writes, q.shape[2], keys))
    if beta is not None:
        beta = beta if beta.ndim == 4 else beta.unsqueeze(2)
        check_shape("beta", beta, (batch, length, writes, heads))
    if read is not None:
        read = read if read.ndim == 5 else read.unsqueeze(2)
        check_shape("read", read, (batch, length, writes, heads, keys))
    log_decay = decay_of(log_decay, batch, length, heads, keys)
    line = Timeline() if timeline is None else timeline.without_interval("delta_rule").expand(batch, length)
    state = broadcast_state("state", state, (batch, heads, keys, width), state_dtype(v), v.device)
    scale = keys**-0.5 if scale is None else float(scale)
    y, last = op(q=q, k=k, v=v, beta=beta, log_decay=log_decay, read=read, scale=scale, state=state, reset=line.reset, mask=line.mask)
    return (y, last) if return_state else y


from statescan.ops.delta_rule import native, portable, reference  # noqa: E402, F401 - they register themselves
