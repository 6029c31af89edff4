"""Log-linear attention: in place of one matrix state, one for each scale of the past, and a query weighs the scales.

Positions p = 0, 1, ... of a document are cut as in a Fenwick tree: what a position t sees of a position s lies on the level
bit_length(p_t XOR p_s), so level 0 is the position itself, and level l > 0 a block of 2^(l-1) neighbours. Per head, with keys of K and
values of V channels, g the logarithm of the decay, and lambda_t one weight a level::

    T_t = e^{g_t},   W_t = k_t v_t^T                                        or, with beta,
    T_t = e^{g_t} (I - beta_t k_t k_t^T),   W_t = beta_t k_t v_t^T          (the delta rule)

    S^l <- T_t S^l                                  for every level          (K, V)
    S^j <- S^j + sum of S^l over l < j,  S^l <- 0   j the level that ends here: bit_length of the lowest bit of p_t
    S^0 <- S^0 + W_t
    y_t = scale sum_l lambda_t^l (S^l)^T q_t

With all lambda = 1 it is linear attention, or the gated delta rule. The number of levels is fixed: a document of more than 2^(levels-1)
positions keeps on its last level all that is older. The state is those matrices, in float32 (float64 for float64 inputs), and the number of
positions that the document has had: where levels end depends on it.

Paper: Guo, Yang, Goel, Xing, Dao and Kim, "Log-Linear Attention", 2025, https://arxiv.org/abs/2506.04761.
"""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.ops.checks import broadcast_state, check_shape, group, state_dtype
from statescan.ops.dispatch import Op
from statescan.timeline import Timeline

op = Op("log_linear", tolerance={torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2})

Levels = tuple[Tensor, Tensor]
"""S (B, H, levels, K, V), and the document's positions so far, int64 (B,)."""


def log_linear(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    level_scale: Tensor,
    log_decay: Tensor,
    beta: Tensor | None = None,
    *,
    scale: float | None = None,
    state: Levels | None = None,
    timeline: Timeline | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Levels]:
    """Run the recurrence; the formula stands above.

    Args:
        q: queries, (B, L, G, K) for G groups of H/G neighbouring heads (G = H: one each).
        k: keys, of q's shape.
        v: values, (B, L, H, V).
        level_scale: lambda, (B, L, H, levels).
        log_decay: g, not positive, (B, L, H).
        beta: strength of each write of the delta rule, (B, L, H); None adds.
        scale: of the output; None is K^-0.5.
        state: what an earlier call returned; an empty document if None.
        timeline: resets (to an empty document) and mask.
        return_state: return the last state too.

    Returns:
        y of v's shape and dtype, or ``(y, state)``. Masked outputs are zero.
    """
    check_shape("v", v, ("B", "L", "H", "V"))
    batch, length, heads, width = v.shape
    keys = q.shape[-1]
    q, k = group("q", q, batch, length, keys, heads), group("k", k, batch, length, keys, heads)
    if q.shape != k.shape:
        raise ValueError(f"q and k must have the same groups; got {tuple(q.shape)} and {tuple(k.shape)}")
    check_shape("level_scale", level_scale, (batch, length, heads, "levels"))
    check_shape("log_decay", log_decay, (batch, length, heads))
    if beta is not None:
        check_shape("beta", beta, (batch, length, heads))
    line = Timeline() if timeline is None else timeline.without_interval("log_linear").expand(batch, length)
    given, before = (None, None) if state is None else state
    S = broadcast_state("state", given, (batch, heads, level_scale.shape[-1], keys, width), state_dtype(v), v.device)
    if before is None:
        before = torch.zeros(batch, dtype=torch.long, device=v.device)
    check_shape("state's position", before, (batch,))
    scale = keys**-0.5 if scale is None else float(scale)
    position = places(line, before, batch, length)
    after = position + 1 if line.mask is None else position + line.mask.long()
    y, last = op(
        q=q, k=k, v=v, level_scale=level_scale, log_decay=log_decay, beta=beta, scale=scale, state=S, position=position, before=before,
        after=after, reset=line.reset, mask=line.mask,
    )  # fmt: skip
    return (y, (last, after[:, -1].clone())) if return_state else y


def places(line: Timeline, before: Tensor, batch: int, length: int) -> Tensor:
    """Existing positions before each in its document, int64 (B, L), where ``before`` (B,) came before the call."""
    exists = torch.ones(1, length, dtype=torch.long, device=before.device).expand(batch, length) if line.mask is None else line.mask.long()
    position = exists.cumsum(1) - exists
    if line.reset is None:
        return position + before.unsqueeze(1)
    dropped = torch.where(line.reset, position, 0).cummax(1).values
    return position - torch.where(line.segments() > 0, dropped, -before.unsqueeze(1))


def bit_length(number: Tensor, levels: int) -> Tensor:
    """Bits of numbers that are not negative, but at most levels - 1: the level at that distance."""
    return (number.unsqueeze(-1) >= 2 ** torch.arange(levels - 1, device=number.device)).sum(-1)


from statescan.ops.log_linear import native, portable, reference  # noqa: E402, F401 - they register themselves
