"""Linear attention in C++: the kernels of the delta rule without a read; see :mod:`statescan.ops.matrix_state_native`."""

from __future__ import annotations

from torch import Tensor

from statescan.ops import matrix_state_native as kernel
from statescan.ops.linear_attention import op

_linear_attention = kernel.register("linear_attention")


def _refuse(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, scale: float, state: Tensor, reset: Tensor | None, mask: Tensor | None
) -> str | None:
    return kernel.refuse(q, k.unsqueeze(2), v.unsqueeze(2), None, log_decay, None, state)


@op.implementation("native", _refuse)
def native(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, scale: float, state: Tensor, reset: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """y (B, L, H, V) and the last state (B, H, K, V)."""
    return kernel.run(_linear_attention, q, k.unsqueeze(2), v.unsqueeze(2), None, log_decay, None, scale, state, reset, mask)
