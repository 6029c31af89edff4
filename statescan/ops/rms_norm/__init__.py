"""The root-mean-square norm, over equal parts of the last axis, with an optional gate.

    y = weight * x / sqrt(mean_over_group(x^2) + eps)

With a gate z, x is multiplied by silu(z) before, or y after it (``norm_before_gate``). Everything is computed in float32 (float64 for
float64 inputs), whatever the storage.
"""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.ops.checks import check_shape
from statescan.ops.dispatch import Op

op = Op("rms_norm", tolerance={torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}, cheap=True)


def rms_norm(
    x: Tensor, weight: Tensor | None = None, z: Tensor | None = None, *, groups: int = 1, eps: float = 1e-5, norm_before_gate: bool = False
) -> Tensor:
    """Norm; the formula stands above.

    Args:
        x: input, (..., D).
        weight: (D,); ones if None.
        z: gate of x's shape.
        groups: number of parts of the last axis, each normed by itself.
        eps: added to the mean square.
        norm_before_gate: the gate multiplies the norm's output, not its input.

    Returns:
        y of x's shape, in weight's dtype (x's without a weight).
    """
    width = x.shape[-1]
    if groups < 1 or width % groups:
        raise ValueError(f"groups must divide the width; got {groups} and {width}")
    if weight is not None:
        check_shape("weight", weight, (width,))
    if z is not None:
        check_shape("z", z, x.shape)
    return op(x=x, weight=weight, z=z, groups=groups, eps=eps, norm_before_gate=norm_before_gate)


from statescan.ops.rms_norm import native, portable, reference  # noqa: E402, F401 - they register themselves
