"""Mamba-3 as linear attention: R writes and R queries a position, each write weighted by what this position and the next give it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from statescan.ops.causal_conv1d import causal_conv1d
from statescan.ops.checks import exactly
from statescan.ops.diagonal_scan import diagonal_scan
from statescan.ops.linear_attention import linear_attention
from statescan.ops.mamba3 import op
from statescan.ops.positions import existing
from statescan.timeline import Timeline


@op.implementation("portable")
def portable(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, delta: Tensor, mix: Tensor, speed: Tensor, q_bias: Tensor, k_bias: Tensor,
    D: Tensor, v_weight: Tensor | None, z: Tensor | None, z_weight: Tensor | None, y_weight: Tensor | None, angle: Tensor, ssm: Tensor,
    last_k: Tensor, last_v: Tensor, reset: Tensor | None, mask: Tensor | None, layout: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """y (B, L, H, P) or o (B, L, R, H, P), and the last angle, S, k and v."""
    dtype, given, line = ssm.dtype, v.dtype, Timeline(reset, mask)
    with exactly(v):
        q, k, v, log_decay, delta, mix, speed = (existing(x, mask).to(dtype) for x in (q, k, v, log_decay, delta, mix, speed))
        phase, angle = _phases(speed, delta, line, angle)
        still = q.shape[-1] // 2 - phase.shape[-1]
        turn = torch.complex(F.pad(phase.cos(), (0, still), value=1.0), F.pad(phase.sin(), (0, still))).unsqueeze(2)
        q, k = _turned(q, q_bias.to(dtype), turn, layout), _turned(k, k_bias.to(dtype), turn, layout)
        now = mix * delta
        (k_before, last_k), (v_before, last_v), (now_before, now_last) = (
            _shifted(x, line, previous) for x, previous in ((k, _pairs(last_k, layout)), (v, last_v), (now, None))
        )
        # What the position before adds as this one comes: its weight of then, which the incoming state has, and that of now.
        added = (now_before + delta - now) * log_decay.exp()
        inputs = _several(v, v_weight)
        o, ssm = _recur(q, k_before, _several(v_before * added.unsqueeze(-1), v_weight), log_decay, line, _pairs(ssm, layout))
        o = existing(o + _present(q, k, now, inputs, D.to(dtype)), mask)
        writes = _several((last_v * now_last.unsqueeze(-1)).unsqueeze(1), v_weight)[:, 0]
        ssm = ssm + torch.einsum("brhp,brhn->bhpn", writes, last_k)
        if z is not None:
            o = o * F.silu(_several(existing(z, mask).to(dtype), z_weight))
            o = (o if y_weight is None else o * y_weight.to(dtype).transpose(0, 1)).sum(2)
        return o.to(given), angle, _stored(ssm, layout), _stored(last_k, layout), last_v


def _phases(speed: Tensor, delta: Tensor, line: Timeline, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Speeds (B, L, T) and steps (B, L, H) -> the phases (B, L, H, T) within one turn, and the last ones."""
    wide = torch.float32 if speed.device.type == "mps" else torch.float64
    turns = speed.to(wide).unsqueeze(2) * delta.to(wide).unsqueeze(-1)
    summed, last = diagonal_scan(turns.new_ones(1, 1, 1, 1), turns, state=angle.to(wide), timeline=line, return_state=True)
    summed, last = (torch.remainder(t, 2 * math.pi).to(speed.dtype) for t in (summed, last))
    return summed, last


def _turned(raw: Tensor, bias: Tensor, turn: Tensor, layout: str) -> Tensor:
    """(B, L, R, G, N) -> (B, L, R, H, N), biased and rotated; states in pairs."""
    groups = raw.shape[3]
    x = _pairs(raw.unsqueeze(4), layout) + _pairs(bias.transpose(0, 1).unflatten(1, (groups, -1)), layout)
    return torch.view_as_real(torch.view_as_complex(x.flatten(3, 4).unflatten(-1, (-1, 2))) * turn).flatten(-2)


def _pairs(x: Tensor, layout: str) -> Tensor:
    """States (..., N) as the caller lays them -> each pair's two side by side."""
    return x if layout == "pairs" else x.unflatten(-1, (2, -1)).mT.flatten(-2)


def _stored(x: Tensor, layout: str) -> Tensor:
    """The inverse of :func:`_pairs`."""
    return x if layout == "pairs" else x.unflatten(-1, (-1, 2)).mT.flatten(-2)


def _several(x: Tensor, weight: Tensor | None) -> Tensor:
    """(B, L, H, P) -> (B, L, R, H, P)."""
    return x.unsqueeze(2) if weight is None else x.unsqueeze(2) * weight.to(x.dtype).transpose(0, 1)


def _recur(q: Tensor, keys: Tensor, values: Tensor, log_decay: Tensor, line: Timeline, ssm: Tensor) -> tuple[Tensor, Tensor]:
    """Linear attention over R writes a position: o (B, L, R, H, P) and the last state (B, H, P, N).

    Query r stands at write r of its position, and what it has not met of that position is added.
    """
    rank, values = q.shape[2], values.expand(*keys.shape[:4], values.shape[-1])
    line = Timeline(
        reset=None if line.reset is None else F.pad(line.reset.unsqueeze(2), (0, rank - 1)).flatten(1, 2),
        mask=None if line.mask is None else line.mask.repeat_interleave(rank, dim=1),
    )
    o, last = linear_attention(
        q.flatten(1, 2), keys.flatten(1, 2), values.flatten(1, 2), F.pad(log_decay.unsqueeze(2), (0, 0, 0, rank - 1)).flatten(1, 2),
        scale=1.0, state=ssm.mT, timeline=line, return_state=True,
    )  # fmt: skip
    o = o.unflatten(1, (-1, rank))
    if rank > 1:
        missed = torch.einsum("blrhn,blshn->blhrs", q, keys).triu(1)
        o = o + torch.einsum("blhrs,blshp->blrhp", missed, values)
    return o, last.mT


def _present(q: Tensor, k: Tensor, now: Tensor, inputs: Tensor, D: Tensor) -> Tensor:
    """What a position's own writes give to its queries, and the skip: (B, L, R, H, P)."""
    if q.shape[2] == 1:
        return ((q * k).sum(-1, keepdim=True) * now[:, :, None, :, None] + D[:, None]) * inputs
    inputs = inputs.expand(*k.shape[:4], inputs.shape[-1])
    own = torch.einsum("blrhn,blshn->blhrs", q, k) * now[..., None, None]
    return torch.einsum("blhrs,blshp->blrhp", own, inputs) + D[:, None] * inputs


def _shifted(x: Tensor, line: Timeline, previous: Tensor | None) -> tuple[Tensor, Tensor]:
    """(B, L, ...) of the existing position before each, and of the last one of all, (B, ...); zeros where there is none."""
    flat = x.flatten(2)
    back = flat.new_tensor([1.0, 0.0]).expand(flat.shape[-1], 2)
    tail = None if previous is None else previous.flatten(1).unsqueeze(1)
    shifted, tail = causal_conv1d(flat, back, state=tail, timeline=line, return_state=True)
    return shifted.unflatten(2, x.shape[2:]), tail.squeeze(1).unflatten(1, x.shape[2:])
