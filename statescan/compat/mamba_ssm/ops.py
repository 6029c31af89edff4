"""``selective_scan_fn``, ``mamba_chunk_scan_combined`` and ``causal_conv1d_fn``: the argument lists, layouts and results of mamba_ssm and
causal_conv1d over this library's operators, on any device and for any size.

They differ where the originals refuse: any length, head size, chunk size and number of taps is legal, sizes need not be multiples of
anything, and every returned state carries gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from statescan.ops import checks
from statescan.ops.causal_conv1d import causal_conv1d
from statescan.ops.diagonal_scan import diagonal_scan
from statescan.ops.selective_scan import selective_scan
from statescan.ops.ssd import ssd
from statescan.timeline import Timeline


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The selective scan, channels before positions.

    Args:
        u, delta, z: (B, E, L); delta raw with ``delta_softplus``, else positive.
        A: (E, N), negative; complex for the complex variant, whose output is twice the real part.
        B, C: (E, N) constant, (B, N, L), or (B, G, N, L) in groups of channels. With a complex A, a constant one is complex, and one
            that varies holds real and imaginary parts side by side: (B, N, 2L) or (B, G, N, 2L).
        D, delta_bias: (E,).

    Returns:
        out (B, E, L), or (out, last_state (B, E, N)).
    """
    if u.ndim != 3:
        raise ValueError(f"u must have shape (batch, dim, seqlen); got {tuple(u.shape)}")
    batch, width, length = u.shape
    scan = _complex_selective_scan if A.is_complex() else selective_scan
    inputs = _grouped("B", B, A, batch, length, width)
    outputs = _grouped("C", C, A, batch, length, width)
    groups = max(inputs.shape[2], outputs.shape[2])
    y, last = scan(
        u.transpose(1, 2),
        delta.transpose(1, 2),
        A,
        inputs.repeat_interleave(groups // inputs.shape[2], dim=2),
        outputs.repeat_interleave(groups // outputs.shape[2], dim=2),
        None if D is None else D.to(checks.state_dtype(u)),
        z=None if z is None else z.transpose(1, 2),
        delta_bias=delta_bias,
        delta_softplus=delta_softplus,
        return_state=True,
    )
    out = y.transpose(1, 2)
    return (out, last) if return_last_state else out


def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    return_varlen_states: bool = False,
    state_dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """The chunked scan of Mamba-2.

    Args:
        x, z: (B, L, H, P).
        dt: (B, L, H), raw with ``dt_softplus``, else positive.
        A, dt_bias: (H,); D: (H,) or (H, P).
        B, C: (B, L, G, N).
        initial_states: (B, H, P, N), for the document numbered 0 when ``seq_idx`` is given.
        seq_idx: document number of each position, (B, L); -1 is padding, whose output is zero.
        cu_seqlens: (documents + 1,), a batch of one row. It separates the documents, as ``seq_idx`` does.
        state_dtype: states are float32 here (float64 for float64 inputs); nothing else may be asked for.

    Returns:
        out (B, L, H, P), followed by the last states (B, H, P, N) with ``return_final_states`` and by the state at the end of each
        document (documents, H, P, N) with ``return_varlen_states``.
    """
    if state_dtype not in (None, torch.float32):
        raise ValueError(f"state_dtype must be None or torch.float32, got {state_dtype}: states are kept in float32")
    if return_varlen_states and cu_seqlens is None:
        raise ValueError("return_varlen_states needs cu_seqlens, the borders of the documents in the one row")
    if cu_seqlens is not None and x.shape[0] != 1:
        raise ValueError(f"cu_seqlens describes a batch of one row; got {x.shape[0]} rows: use seq_idx")
    if cu_seqlens is not None and seq_idx is None:
        lengths = cu_seqlens.diff()
        seq_idx = torch.arange(len(lengths), device=x.device).repeat_interleave(lengths)[None]
    y, last = ssd(
        x,
        dt,
        A,
        B,
        C,
        D,
        delta_bias=dt_bias,
        delta_softplus=dt_softplus,
        delta_limit=dt_limit,
        state=initial_states,
        timeline=_documents(seq_idx),
        chunk_size=chunk_size,
        return_state=True,
    )
    wide = checks.state_dtype(y)
    out = y if z is None else (y.to(wide) * F.silu(z.to(wide))).to(y.dtype)
    results = [out]
    if return_final_states:
        results.append(last)
    if return_varlen_states:
        assert cu_seqlens is not None
        results.append(_states_at_ends(x, dt, A, B, dt_bias, dt_softplus, dt_limit, initial_states, cu_seqlens))
    return tuple(results) if len(results) > 1 else out


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The short depthwise convolution, channels before positions.

    Args:
        x: (B, E, L).
        weight: (E, K); bias: (E,).
        seq_idx: document number of each position, (B, L); -1 is padding, whose output is zero.
        initial_states: the K-1 inputs before the first, (B, E, K-1); not together with ``seq_idx``.
        final_states_out: written in place when ``return_final_states`` asks for the state.
        activation: None, "silu" or "swish" (the same thing).

    Returns:
        out (B, E, L), or (out, final_states (B, E, K-1)).
    """
    if activation not in (None, "silu", "swish"):
        raise ValueError(f"activation must be None, 'silu' or 'swish'; got {activation!r}")
    if seq_idx is not None and (initial_states is not None or return_final_states):
        raise ValueError("seq_idx cannot be combined with initial_states or return_final_states: a row of documents has no one state")
    y, state = causal_conv1d(
        x.transpose(1, 2),
        weight,
        bias,
        activation=None if activation is None else "silu",
        state=None if initial_states is None else initial_states.transpose(1, 2),
        timeline=_documents(seq_idx),
        return_state=True,
    )
    out = y.transpose(1, 2)
    if not return_final_states:
        return out
    final = state.transpose(1, 2)
    if final_states_out is None:
        return out, final
    with torch.no_grad():
        final_states_out.copy_(final)
    return out, final_states_out


def _documents(seq_idx: Tensor | None) -> Timeline | None:
    """A reset where the document number changes; position 0 continues the incoming state only as document 0."""
    if seq_idx is None:
        return None
    line = Timeline.from_seq_idx(seq_idx)
    assert line.reset is not None
    first = torch.zeros_like(line.reset)
    first[:, 0] = seq_idx[:, 0] == 0
    return line._replace(reset=line.reset & ~first)


def _grouped(name: str, tensor: Tensor, A: Tensor, batch: int, length: int, width: int) -> Tensor:
    """Any of the three layouts of B and C as (B, L, G, N)."""
    if tensor.ndim == 2:
        return tensor[None, None].expand(batch, length, width, -1)
    if tensor.ndim not in (3, 4):
        raise ValueError(f"{name} must have shape (dim, dstate), (batch, dstate, seqlen) or (batch, groups, dstate, seqlen)")
    tensor = tensor.unsqueeze(1) if tensor.ndim == 3 else tensor
    if A.is_complex():
        tensor = torch.view_as_complex(tensor.float().unflatten(-1, (-1, 2)).contiguous())
    if width % tensor.shape[1]:
        raise ValueError(f"{name} has {tensor.shape[1]} groups, which do not divide {width} channels")
    return tensor.permute(0, 3, 1, 2)


def _complex_selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    *,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    return_state: bool,
) -> tuple[Tensor, Tensor]:
    """The complex variant, y = 2 Re(C h): rarely used, so it keeps every state in memory, (B, L, E, N)."""
    assert return_state
    x = u.float()
    step = delta.float() if delta_bias is None else delta.float() + delta_bias.float()
    step = F.softplus(step) if delta_softplus else step
    width = x.shape[2]
    B, C = (t.repeat_interleave(width // t.shape[2], dim=2) for t in (B, C))
    h, last = diagonal_scan(torch.exp(step[..., None] * A), (step * x)[..., None] * B, return_state=True)
    y = 2 * (h * C).sum(-1).real
    y = y if D is None else y + x * D
    y = y if z is None else y * F.silu(z.float())
    return y.to(u.dtype), last


def _states_at_ends(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    dt_limit: tuple[float, float],
    initial_states: Tensor | None,
    cu_seqlens: Tensor,
) -> Tensor:
    """The state at the end of each document of one row: the documents become rows of their own, filled up on the right."""
    starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
    offsets = torch.arange(int(lengths.max()), device=x.device)
    exists = offsets[None] < lengths[:, None]
    index = (starts[:, None] + offsets[None]).clamp(max=x.shape[1] - 1)
    first = None
    if initial_states is not None:
        first = torch.cat([initial_states, initial_states.new_zeros(len(lengths) - 1, *initial_states.shape[1:])])
    _, last = ssd(
        x[0, index],
        dt[0, index],
        A,
        B[0, index],
        B[0, index],
        delta_bias=dt_bias,
        delta_softplus=dt_softplus,
        delta_limit=dt_limit,
        state=first,
        timeline=Timeline(mask=exists),
        return_state=True,
    )
    return last
