"""The delta rule in C++; see :mod:`statescan.ops.matrix_state_native`."""

from __future__ import annotations

from torch import Tensor

from statescan.ops import matrix_state_native as kernel
from statescan.ops.delta_rule import op

_delta_rule = kernel.register("delta_rule")


def _refuse(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor | None, log_decay: Tensor | None, read: Tensor | None, scale: float, state: Tensor,
    reset: Tensor | None, mask: Tensor | None,
) -> str | None:  # fmt: skip
    return kernel.refuse(q, k, v, beta, log_decay, read, state)


@op.implementation("native", _refuse)
def native(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor | None, log_decay: Tensor | None, read: Tensor | None, scale: float, state: Tensor,
    reset: Tensor | None, mask: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y (B, L, H, V) and the last state (B, H, K, V)."""
    return kernel.run(_delta_rule, q, k, v, beta, log_decay, read, scale, state, reset, mask)
