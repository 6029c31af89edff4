"""The CUDA kernel of the ``mamba-ssm`` package. It knows no incoming state, and its backward ignores the last one.

So the state goes in and out through positions of its own, N before the sequence and N after it, in float32. Position n before it adds
state n: a step of 2^-40, over which nothing decays in float32, and the input 2^40 times the state. Position n after it reads state n: a
step of zero. Every gradient follows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.ops import wrapped_gate
from statescan.ops.positions import elapsed, existing
from statescan.ops.selective_scan import op
from statescan.ops.selective_scan.steps import multiplied

MAX_N = 256
STEP = 2.0**-40
KERNEL = ("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn")


def _refuse(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, delta_weight: Tensor | None,
    delta_bias: Tensor | None, delta_softplus: bool, state: Tensor, reset_to: Tensor | None, reset: Tensor | None, mask: Tensor | None,
    interval: Tensor | float | None, return_states: bool,
) -> str | None:  # fmt: skip
    if return_states:
        return "return_states asks for every state; selective_scan_fn returns the last"
    if reset is not None:
        return "there are resets; selective_scan_fn cannot forget its state"
    if A.shape[1] > MAX_N:
        return f"N is {A.shape[1]}; selective_scan_fn takes up to {MAX_N}"
    return wrapped_gate.refuse(
        *KERNEL, (torch.float32, torch.bfloat16), x=x, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_weight=delta_weight,
        delta_bias=delta_bias, state=state,
    )  # fmt: skip


@op.implementation("mamba_ssm", _refuse)
def mamba_ssm(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, delta_weight: Tensor | None,
    delta_bias: Tensor | None, delta_softplus: bool, state: Tensor, reset_to: Tensor | None, reset: Tensor | None, mask: Tensor | None,
    interval: Tensor | float | None, return_states: bool,
) -> tuple[Tensor, Tensor, None]:  # fmt: skip
    """y (B, L, E) and the last state (B, E, N). Layouts of the kernel: (B, E, L), and (B, G, N, L) for the maps."""
    dtype, length, n = state.dtype, x.shape[1], A.shape[1]
    inputs, B, C = (existing(tensor, mask).to(dtype) for tensor in (x, B, C))
    delta = elapsed(multiplied(delta, delta_weight, mask), delta_bias, delta_softplus, None, interval, mask, dtype)
    single = torch.eye(n, dtype=dtype, device=x.device)[:, None].expand(x.shape[0], -1, B.shape[2], -1)  # (B, N, G, N)
    nothing, still = torch.zeros_like(single), delta.new_zeros(x.shape[0], n, x.shape[2])
    u = torch.cat([state.mT / STEP, inputs, still], dim=1)
    delta = torch.cat([still + STEP, delta, still], dim=1)
    B, C = torch.cat([single, B, nothing], dim=1), torch.cat([nothing, C, single], dim=1)
    scan = wrapped_gate.function(*KERNEL)
    out = scan(
        u.mT.contiguous(), delta.mT.contiguous(), A.to(dtype), B.permute(0, 2, 3, 1).contiguous(), C.permute(0, 2, 3, 1).contiguous(),
        None if D is None else D.to(dtype), None, None, False,
    )  # fmt: skip
    y, last = out[..., n : n + length].mT, out[..., n + length :]
    if z is not None:
        y = y * F.silu(existing(z, mask).to(dtype))
    return existing(y, mask).to(x.dtype), last.contiguous(), None
