"""Copy this folder to ``statescan/ops/<name>/`` and change the sum into your recurrence. Say first what it computes:

    y_t = decay * y_{t-1} + x_t

with the shapes, the space of each argument (raw, positive, logarithm) and the paper. Then import it in ``statescan/ops/__init__.py``.
``tests/ops/test_implementations.py`` finds it there and runs every case of ``cases.py`` on every implementation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.ops.checks import broadcast_state, check_shape, state_dtype
from statescan.ops.dispatch import Op
from statescan.timeline import Timeline

op = Op("_template", tolerance={torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2})


def template(
    x: Tensor, decay: Tensor, *, state: Tensor | None = None, timeline: Timeline | None = None, return_state: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the recurrence above. Check every argument here, complete the optional ones, and leave the arithmetic to an implementation.

    Args:
        x: input, (B, L, D).
        decay: between 0 and 1, (D,).
        state: y before the first position, (B, D); zeros if None.
        timeline: resets (to zeros) and mask.
        return_state: return the last state too, (B, D).

    Returns:
        y of x's shape and dtype, or ``(y, state)``. Masked outputs are zero.
    """
    check_shape("x", x, ("B", "L", "D"))
    batch, length, width = x.shape
    check_shape("decay", decay, (width,))
    line = Timeline() if timeline is None else timeline.without_interval("template").expand(batch, length)
    state = broadcast_state("state", state, (batch, width), state_dtype(x), x.device)
    y, last = op(x=x, decay=decay, state=state, reset=line.reset, mask=line.mask)
    return (y, last) if return_state else y


from statescan.ops._template import portable, reference  # noqa: E402, F401 - they register themselves
