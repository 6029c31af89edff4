"""How each mixer's single position becomes instructions. A mixer without an entry is called instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from statescan.engine.builder import Builder, Unplain
from statescan.engine.recurrences import RECURRENCES
from statescan.engine.rows import Row
from statescan.layers import MLP, GatedMLP, GatedRMSNorm, RMSNorm
from statescan.layers.mlp import Activation
from statescan.mixers import Mamba, Mamba2

Lowering = Callable[[Builder, Any, int, int], None]
"""(builder, mixer, source, stream): adds the mixer of ``source`` to ``stream``."""


def _negative(A_log: Tensor | None) -> Tensor:
    assert A_log is not None
    return -torch.exp(A_log.float()).contiguous()


def mamba(b: Builder, m: Mamba, source: int, stream: int) -> None:
    """Mamba's step."""
    if m.share is not None:
        raise Unplain("a Mamba with share writes to the bus")
    E, R, N = m.d_inner, m.dt_rank, m.d_state
    xz, x, rbc, delta, y = b.rows(2 * E), b.rows(E), b.rows(R + 2 * N), b.rows(E), b.rows(E)
    b.linear(m.in_proj, source, xz)
    b.conv(m.conv1d, xz, x)
    b.linear(m.x_proj, x, rbc)
    if m.bcdt_norm != "none":
        plain, rbc = rbc, b.rows(R + 2 * N)
        norms = [RMSNorm(n, m.norm_eps) for n in (R, N, N)] if m.bcdt_norm == "rms" else [m.dt_layernorm, m.b_layernorm, m.c_layernorm]
        for norm, start in zip(norms, (0, R, R + N), strict=True):
            b.norm(norm, plain + start, rbc + start)
    b.linear(m.dt_proj, rbc, delta)
    A, D = _negative(b.parameter(m, "A_log")), b.floats(m, "D")
    b.selective_scan(x, delta, A, rbc + R, rbc + R + N, D, xz + E, y, softplus=True)
    b.linear(m.out_proj, y, stream, add=True)


def mamba2(b: Builder, m: Mamba2, source: int, stream: int) -> None:
    """Mamba-2's step, with its optional gated MLP beside the heads."""
    if m.share is not None:
        raise Unplain("a Mamba2 with share writes to the bus")
    if m.multipliers is not None:
        raise Unplain("there is no native step for Mamba2 with multipliers")
    H, P, N, G, M, S = m.nheads, m.headdim, m.d_state, m.ngroups, m.d_mlp, m.d_ssm
    width = S + 2 * G * N
    projected = b.rows(2 * M + S + width + H)
    z = projected + 2 * M
    xbc, y, joined = b.rows(width), b.rows(S), b.rows(M + S)
    b.linear(m.in_proj, source, projected)
    b.conv(m.conv1d, z + S, xbc)
    D = b.floats(m, "D")
    assert D is not None
    b.ssd(
        xbc, z + S + width, _negative(b.parameter(m, "A_log")), xbc + S, xbc + S + G * N, D.view(H, -1).expand(H, P).contiguous(),
        b.floats(m, "dt_bias"), y, heads=H, p=P, n=N, groups=G, softplus=True, limit=m.dt_limit,
    )  # fmt: skip
    if M:
        b.gated_unit(projected + M, projected, joined, M)
    if m.norm is None:
        b.gated_norm(y, z, joined + M, S, None, groups=1, eps=0.0, gate_last=False)
    else:
        b.read(m.norm, GatedRMSNorm)
        weight = b.floats(m.norm, "weight")
        b.gated_norm(y, z, joined + M, S, weight, groups=m.norm.groups, eps=m.norm.eps, gate_last=m.norm.norm_before_gate)
    b.linear(m.out_proj, joined, stream, add=True)


def activate(x: Row, activation: Activation) -> Row:
    """As :func:`statescan.layers.mlp.activate`."""
    if activation == "relu2":
        x = x.maximum(0.0)
        return x * x
    return x.apply(activation)


def mlp(b: Builder, m: MLP, source: int, stream: int) -> None:
    """The feed-forward layer."""
    b.linear(m.down_proj, activate(b.project(m.up_proj, source), m.activation).at, stream, add=True)


def gated_mlp(b: Builder, m: GatedMLP, source: int, stream: int) -> None:
    """The gated feed-forward layer."""
    gate_by, down = m.multipliers
    if down != 1:
        raise Unplain(f"what a GatedMLP adds is multiplied by {down}")
    with b.beside():
        gate, up = b.project(m.gate_proj, source), b.project(m.up_proj, source)
    y = up * activate(gate if gate_by == 1 else gate * gate_by, m.activation)
    b.linear(m.down_proj, y.at, stream, add=True)


LOWERINGS: dict[type[nn.Module], Lowering] = {Mamba: mamba, Mamba2: mamba2, MLP: mlp, GatedMLP: gated_mlp, **RECURRENCES}
