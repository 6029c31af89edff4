"""The Triton kernels of the ``mamba-ssm`` and ``fla`` packages. Their products round float32 to TF32: they serve bfloat16 inputs only."""

from __future__ import annotations

import torch
from torch import Tensor

from statescan.ops import wrapped_gate
from statescan.ops.positions import elapsed, existing
from statescan.ops.ssd import op

CHUNK = 256
FLA = ("fla.ops.simple_gla", "chunk_simple_gla")
MAMBA = ("mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined")


def _refuse_mamba(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None, delta_softplus: bool,
    delta_limit: tuple[float, float], state: Tensor, reset_to: Tensor | None, reset: Tensor | None, mask: Tensor | None,
    interval: Tensor | float | None, chunk_size: int | None,
) -> str | None:  # fmt: skip
    if reset is not None:
        return "there are resets; mamba_chunk_scan_combined has no state to return to"
    if chunk_size is not None and (chunk_size < 16 or chunk_size & (chunk_size - 1)):
        return f"chunk_size is {chunk_size}; mamba_chunk_scan_combined takes powers of two from 16"
    return wrapped_gate.refuse(*MAMBA, (torch.bfloat16,), x=x, B=B, C=C)


@op.implementation("mamba_ssm", _refuse_mamba)
def mamba_ssm(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None, delta_softplus: bool,
    delta_limit: tuple[float, float], state: Tensor, reset_to: Tensor | None, reset: Tensor | None, mask: Tensor | None,
    interval: Tensor | float | None, chunk_size: int | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y (B, L, H, P) and the last state (B, H, P, N). The layouts are ours; the step is finished here, in float32."""
    dtype = state.dtype
    inputs, B, C = (existing(tensor, mask) for tensor in (x, B, C))
    delta = elapsed(delta, delta_bias, delta_softplus, delta_limit, interval, mask, dtype)
    scan = wrapped_gate.function(*MAMBA)
    y, last = scan(
        inputs, delta, A.to(dtype), B, C, chunk_size or CHUNK, D=None if D is None else D.to(dtype).contiguous(), z=None, dt_bias=None,
        initial_states=state.contiguous(), seq_idx=None, dt_softplus=False, dt_limit=(0.0, float("inf")), return_final_states=True,
    )  # fmt: skip
    return existing(y, mask).to(x.dtype), last.to(dtype)


def _refuse_fla(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None, delta_softplus: bool,
    delta_limit: tuple[float, float], state: Tensor, reset_to: Tensor | None, reset: Tensor | None, mask: Tensor | None,
    interval: Tensor | float | None, chunk_size: int | None,
) -> str | None:  # fmt: skip
    if reset is not None:
        return "there are resets; chunk_simple_gla knows sequences of one row only, and no state to return to"
    if chunk_size is not None:
        return "chunk_size is given; chunk_simple_gla chooses its own"
    return wrapped_gate.refuse(*FLA, (torch.bfloat16,), x=x, B=B, C=C)


@op.implementation("fla", _refuse_fla)
def fla(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None, delta_softplus: bool,
    delta_limit: tuple[float, float], state: Tensor, reset_to: Tensor | None, reset: Tensor | None, mask: Tensor | None,
    interval: Tensor | float | None, chunk_size: int | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y and the last state by gated linear attention with one decay a head: queries are C, keys B, values delta x, the state is turned.

    It has no groups, so B and C are copied to every head.
    """
    dtype, members = state.dtype, x.shape[2] // B.shape[2]
    inputs, B, C = (existing(tensor, mask) for tensor in (x, B, C))
    delta = elapsed(delta, delta_bias, delta_softplus, delta_limit, interval, mask, dtype)
    attend = wrapped_gate.function(*FLA)
    y, last = attend(
        q=C.repeat_interleave(members, dim=2), k=B.repeat_interleave(members, dim=2), v=(inputs * delta.unsqueeze(-1)).to(x.dtype),
        g=delta * A.to(dtype), scale=1.0, initial_state=state.mT.contiguous(), output_final_state=True,
    )  # fmt: skip
    if D is not None:
        y = torch.addcmul(y.to(dtype), inputs.to(dtype), D.to(dtype))
    return existing(y, mask).to(x.dtype), last.mT.to(dtype).contiguous()
