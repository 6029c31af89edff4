"""The CUDA kernel of the ``causal-conv1d`` package, in its channels-last layout, which is ours: (B, E, L) with neighbouring channels."""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.ops import wrapped_gate
from statescan.ops.causal_conv1d import op

KERNEL = ("causal_conv1d", "causal_conv1d_fn")


def _refuse(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, state: Tensor, reset: Tensor | None, mask: Tensor | None
) -> str | None:  # fmt: skip
    width, taps = weight.shape
    if reset is not None or mask is not None:
        return "there are resets or a mask; causal_conv1d_fn takes neither together with a state"
    if not 2 <= taps <= 4:
        return f"there are {taps} taps; causal_conv1d_fn takes 2 to 4"
    if width % 8:
        return f"there are {width} channels; causal_conv1d_fn takes multiples of 8"
    return wrapped_gate.refuse(*KERNEL, (torch.float32, torch.bfloat16), x=x, weight=weight, bias=bias, state=state)


@op.implementation("causal_conv1d", _refuse)
def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, state: Tensor, reset: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y (B, L, E) and the last K - 1 inputs (B, K-1, E)."""
    convolve = wrapped_gate.function(*KERNEL)
    y, last = convolve(
        x.contiguous().mT, weight.contiguous(), None if bias is None else bias.to(weight.dtype), initial_states=state.contiguous().mT,
        return_final_states=True, activation=activation,
    )  # fmt: skip
    return y.mT, last.mT
