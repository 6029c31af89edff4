"""The single positions of the recurrences beside Mamba as instructions; each follows the formulas of its mixer's docstring."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from statescan.engine.builder import Builder, Unplain
from statescan.engine.rows import Row
from statescan.layers import GatedRMSNorm
from statescan.mixers import (
    GLA,
    HGRN2,
    KDA,
    MLSTM,
    RGLRU,
    SLSTM,
    Attention,
    DeltaNet,
    GatedDeltaNet,
    LogLinearGatedDeltaNet,
    LogLinearMamba2,
    Mamba3,
    MesaNet,
    RetNet,
    RWKV7ChannelMix,
    RWKV7TimeMix,
)
from statescan.mixers.lru import RealGatedUnit
from statescan.mixers.mamba3 import SLOWEST
from statescan.mixers.slstm import SLSTMCell
from statescan.ops.mlstm.reference import FLOOR


def gla(b: Builder, m: GLA, source: int, stream: int) -> None:
    """Gated linear attention."""
    b.read(m.gk_proj, nn.Sequential)
    if len(m.gk_proj) != 2:
        raise Unplain(f"gk_proj has {len(m.gk_proj)} parts, not two")
    with b.beside():
        q, k, v, g, low = (b.project(proj, source) for proj in (m.q_proj, m.k_proj, m.v_proj, m.g_proj, m.gk_proj[0]))
    raw = b.project(m.gk_proj[1], low)
    decay = (raw.log_sigmoid() * (1 / m.gate_logit_normalizer)).exp()
    y = b.matrix_step(q, k, v, (m.num_heads, m.key_width, m.value_width), decay=decay)
    y = b.normed(m.g_norm_swish_gate, y) * g.apply("silu")
    b.linear(m.o_proj, y.at, stream, add=True)


def retnet(b: Builder, m: RetNet, source: int, stream: int) -> None:
    """Retention."""
    heads, width = m.num_heads, m.key_width
    with b.beside():
        q, k, v, g = (b.project(proj, source) for proj in (m.q_proj, m.k_proj, m.v_proj, m.g_proj))
    state = (heads, width, m.value_width)
    decay = b.fixed(1 - 2.0 ** (-5 - torch.arange(heads, dtype=torch.float32))).copy(b.row(heads))
    number = b.next_state(*state)
    angle = rotary(b, b.count(), m.rotary_base, width)
    for row in (q, k):
        row.turn(angle, heads, width // 2)
    y = b.matrix_step(q, k, v, state, decay=decay, number=number)
    y = b.normed(m.g_norm_swish_gate, y) * g.apply("silu")
    b.linear(m.o_proj, y.at, stream, add=True)


def rotary(b: Builder, count: Row, base: float, width: int) -> Row:
    """The angles of a position, as :func:`statescan.layers.rotary.rotate` has them."""
    exponent = torch.arange(0, width, 2, dtype=torch.float32) / width
    return count.spread(width // 2) / b.fixed(base**exponent)


def hgrn2(b: Builder, m: HGRN2, source: int, stream: int) -> None:
    """HGRN2."""
    with b.beside():
        q, f, v = (b.project(proj, source) for proj in (m.q_proj, m.f_proj, m.i_proj))
    heads = m.d_model // m.expand_ratio
    decay = f.sigmoid() * (1 - m.lower_bound) + m.lower_bound
    key = (-f).sigmoid() * (1 - m.lower_bound)
    y = b.matrix_step(q.apply("silu"), key, v, (heads, m.expand_ratio, m.expand_ratio), decay=decay)
    y = b.normed(m.g_norm, y)
    b.linear(m.o_proj, y.at, stream, add=True)


# -- the delta rule -----------------------------------------------------------------------------------------------------------------


def delta(b: Builder, m: DeltaNet | GatedDeltaNet | KDA, source: int, stream: int) -> None:
    """DeltaNet, Gated DeltaNet with any number of writes or with levels, Kimi delta attention."""
    (groups, width), (heads, values), writes = m.key_shape, m.value_shape, m.num_writes
    others: dict[str, nn.Module] = {"b": m.b_proj}
    if isinstance(m, KDA):
        others |= {"f": m.f_a_proj if m.low_rank else m.f_proj, "g": m.g_a_proj if m.low_rank else m.g_proj}
    elif m.g_proj is not None:
        others |= {"g": m.g_proj}
    if isinstance(m, GatedDeltaNet):
        others |= {"a": m.a_proj}
    if isinstance(m, LogLinearGatedDeltaNet):
        others |= {"l": m.l_proj}
    with b.beside():
        plain = [b.project(proj, source) for proj in (m.q_proj, m.k_proj, m.v_proj)]
        got = {name: b.project(proj, source) for name, proj in others.items()}
    q, k, v = (b.row(row.width) for row in plain)
    with b.beside():
        if isinstance(m, KDA) and m.low_rank:
            got |= {"f": b.project(m.f_b_proj, got["f"]), "g": b.project(m.g_b_proj, got["g"])}
        for conv, row, to in zip((m.q_conv1d, m.k_conv1d, m.v_conv1d), plain, (q, k, v), strict=True):
            b.conv(conv, row.at, to.at)
    beta = got["b"].sigmoid()
    if m.allow_neg_eigval:
        beta = beta * 2.0
    log_decay = None
    if isinstance(m, GatedDeltaNet | KDA):
        raw = got["a"] if isinstance(m, GatedDeltaNet) else got["f"]
        rate = b.fixed(b.given(m, "A_log").exp()).spread(raw.width // heads)
        raw = raw + b.fixed(b.given(m, "dt_bias"))
        bound = m.lower_bound if isinstance(m, KDA) else None
        log_decay = -(raw.apply("softplus") * rate) if bound is None else (raw * rate).sigmoid() * bound
    q, k = q.unit(width, 1e-6), k.unit(width, 1e-6)
    if isinstance(m, LogLinearGatedDeltaNet):
        assert log_decay is not None
        y = b.log_linear(q, k, v, _levels(b, m, got["l"]), log_decay, beta, (heads, m.L.shape[1], width, values), width**-0.5)
    else:
        decay = None if log_decay is None else log_decay.exp()
        y = b.matrix_step(q, k, v, (heads, width, values), decay=decay, beta=beta, groups=groups, writes=writes)
    y = b.normed(m.o_norm, y)
    if "g" in got:
        y = y * got["g"].apply("sigmoid" if isinstance(m, KDA) else "silu")
    b.linear(m.o_proj, y.at, stream, add=True)


# -- log-linear attention -----------------------------------------------------------------------------------------------------------


def _levels(b: Builder, m: LogLinearMamba2 | LogLinearGatedDeltaNet, raw: Row) -> Row:
    """The weight of each level."""
    return (raw * b.fixed(b.given(m, "L"))).apply("softplus")


def log_linear_mamba2(b: Builder, m: LogLinearMamba2, source: int, stream: int) -> None:
    """Mamba-2 with the levels of log-linear attention."""
    heads, p, n, bc = m.nheads, m.headdim, m.d_state, m.ngroups * m.d_state
    z, plain, dt, dl = b.project(m.in_proj, source).split(m.d_inner, m.d_inner + 2 * bc, heads, heads * m.levels)
    xbc = b.row(plain.width)
    b.conv(m.conv1d, plain.at, xbc.at)
    x, B, C = xbc.split(m.d_inner, bc, bc)
    delta = (dt + b.fixed(b.given(m, "dt_bias"))).apply("softplus")
    log_decay = delta * b.fixed(-b.given(m, "A_log").exp())
    y = b.log_linear(C, B, x * delta.spread(p), _levels(b, m, dl), log_decay, None, (heads, m.levels, n, p), 1.0)
    y = _gated(b, m.norm, y + x * b.fixed(b.given(m, "D")).spread(p), z)
    b.linear(m.out_proj, y.at, stream, add=True)


# -- the mesa layer -----------------------------------------------------------------------------------------------------------------


def mesa(b: Builder, m: MesaNet, source: int, stream: int) -> None:
    """MesaNet."""
    heads, width = m.heads
    others = {} if m.g_proj is None else {"g": m.g_proj}
    with b.beside():
        raw_q, raw_k, v, beta, a = (b.project(proj, source) for proj in (m.q_proj, m.k_proj, m.v_proj, m.b_proj, m.a_proj))
        gate = {name: b.project(proj, source) for name, proj in others.items()}
    q, k = b.row(raw_q.width), b.row(raw_k.width)
    with b.beside():
        b.conv(m.q_conv1d, raw_q.at, q.at)
        b.conv(m.k_conv1d, raw_k.at, k.at)
    ridge = nn.functional.softplus(b.given(m, "lambda_params")) + m.lambda_lower_bound
    y = b.mesa(q.unit(width, 1e-6), k.unit(width, 1e-6), v, beta.sigmoid(), a.log_sigmoid(), ridge.view(heads, width), width, m.iterations)
    y = b.normed(m.o_norm, y)
    if "g" in gate:
        y = y * gate["g"].apply("silu")
    b.linear(m.o_proj, y.at, stream, add=True)


# -- RWKV-7 -------------------------------------------------------------------------------------------------------------------------


def _shifted(b: Builder, source: int, width: int) -> tuple[Row, Row]:
    """The input, and the one before less it."""
    x = b.row(width, source)
    before, after = b.memory(1, width)
    back = before - x
    x.copy(after)
    return x, back


def rwkv7(b: Builder, m: RWKV7TimeMix, source: int, stream: int) -> None:
    """RWKV-7's time mixing. The values of the first layer stay in a place of the bus."""
    width, n = m.d_model, m.head_dim
    if not m.first and "v_first" not in b.workspace.bus:
        raise Unplain("no layer before it left v_first in the program")
    x, back = _shifted(b, source, width)
    mixed = {name: x + back * b.fixed(b.given(m, name)) for name in ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g")}
    with b.beside():
        r, k, v = (b.project(proj, mixed[name]) for proj, name in ((m.receptance, "x_r"), (m.key, "x_k"), (m.value, "x_v")))
        w, a, g = (b.transposed(m, name, mixed[given]) for name, given in (("w1", "x_w"), ("a1", "x_a"), ("g1", "x_g")))
        lent = None if m.first else b.transposed(m, "v1", mixed["x_v"])
    w, g = w.apply("tanh"), g.sigmoid()
    with b.beside():
        w, a, g = (b.transposed(m, name, row) for name, row in (("w2", w), ("a2", a), ("g2", g)))
        lent = None if lent is None else b.transposed(m, "v2", lent)
    if lent is None:
        v.copy(b.row(width, b.workspace.lend("v_first")))
    else:
        v = v + (b.row(width, b.workspace.bus["v_first"]) - v) * (lent + b.fixed(b.given(m, "v0"))).sigmoid()
    decay = ((w + b.fixed(b.given(m, "w0"))).sigmoid() * -math.exp(-0.5)).exp()
    a = (a + b.fixed(b.given(m, "a0"))).sigmoid()
    raw = k * b.fixed(b.given(m, "k_k"))
    length = (raw * raw).sum(n).apply("root").maximum(1e-12)
    removed = raw / length.spread(n)
    keys = b.row(2 * width)
    (removed * (a * 2.0 if m.allow_neg_eigval else a)).copy(keys[:width])
    (k * ((a - 1.0) * b.fixed(b.given(m, "k_a")) + 1.0)).copy(keys[width:])
    k = keys[width:]
    y = b.matrix_step(r, keys, v, (width // n, n, n), decay=decay, read=removed, writes=2, scale=1.0)
    bonus = (r * k * b.fixed(b.given(m, "r_k"))).sum(n).spread(n) * v
    y = (b.normed(m.ln_x, y) + bonus) * g
    b.linear(m.output, y.at, stream, add=True)


def rwkv7_channel(b: Builder, m: RWKV7ChannelMix, source: int, stream: int) -> None:
    """RWKV-7's channel mixing."""
    x, back = _shifted(b, source, m.d_model)
    h = b.project(m.key, x + back * b.fixed(b.given(m, "x_k"))).maximum(0.0)
    b.linear(m.value, (h * h).at, stream, add=True)


# -- xLSTM --------------------------------------------------------------------------------------------------------------------------


def mlstm(b: Builder, m: MLSTM, source: int, stream: int) -> None:
    """The matrix LSTM of the large models."""
    heads, width, values = m.num_heads, m.key_width, m.value_width
    with b.beside():
        projections = (m.q, m.k, m.v, m.ogate_preact, m.igate_preact, m.fgate_preact)
        q, k, v, o, i, f = (b.project(proj, source) for proj in projections)
    if m.gate_soft_cap is not None:
        i, f = ((gate * (1 / m.gate_soft_cap)).apply("tanh") * m.gate_soft_cap for gate in (i, f))
    number = b.next_state(heads, width, values)
    (n_before, n_after), (m_before, m_after) = b.memory(heads, width), b.memory(heads)
    kept = f.log_sigmoid() + m_before
    top = kept.maximum(i)
    forget = (kept - top).exp()
    key = k * (i - top).exp().spread(width)
    n = n_before * forget.spread(width) + key
    y = b.matrix_step(q, key, v, (heads, width, values), decay=forget, number=number)
    through = ((n * q).sum(width) * width**-0.5).apply("abs")
    floor = (-(top.maximum(-FLOOR))).exp()
    y = y / (through.maximum(floor) + m.eps).spread(values)
    n.copy(n_after), top.copy(m_after)
    y = b.normed(m.multihead_norm, y) * o.sigmoid()
    b.linear(m.out_proj, y.at, stream, add=True)


def slstm(b: Builder, m: SLSTM, source: int, stream: int) -> None:
    """The scalar LSTM."""
    cell, width = m.slstm_cell, m.d_model
    b.read(cell, SLSTMCell)
    c_row = b.row(width)
    b.conv(m.conv1d, source, c_row.at)
    (h, h_after), (c, c_after), (n, n_after), (top, top_after) = (b.memory(m.num_heads, width // m.num_heads) for _ in range(4))
    last = h.copy(b.row(width))
    with b.beside():
        gates = [b.project(proj, x) for proj, x in ((m.fgate, c_row), (m.igate, c_row), (m.zgate, source), (m.ogate, source))]
    R = b.weight(cell, "_recurrent_kernel_").unflatten(1, (4, -1))
    with b.beside():
        for j, gate in enumerate(gates):
            b.blocks(R[:, j], last.at, gate)
    i, f, z, o = (gate + b.fixed(bias) for gate, bias in zip(gates, b.given(cell, "_bias_").chunk(4), strict=True))
    kept = (f.log_sigmoid() + top).unless_empty(n)
    new_top = kept.maximum(i)
    forget, put = (kept - new_top).exp(), (i - new_top).exp()
    new_c, new_n = forget * c + put * z.apply("tanh"), forget * n + put
    new_h = o.sigmoid() * new_c / new_n
    for row, to in ((new_h, h_after), (new_c, c_after), (new_n, n_after), (new_top, top_after)):
        row.copy(to)
    x = b.row(width, stream)
    (x + b.normed(m.group_norm, new_h)).copy(x)


# -- Griffin ------------------------------------------------------------------------------------------------------------------------


def rg_lru(b: Builder, m: RGLRU, source: int, stream: int) -> None:
    """Griffin's recurrent block."""
    unit = m.rg_lru
    b.read(unit, RealGatedUnit)
    with b.beside():
        y, plain = b.project(m.linear_y, source), b.project(m.linear_x, source)
    x = b.row(plain.width)
    b.conv(m.conv_1d, plain.at, x.at)
    h_before, h_after = b.memory(x.width)
    first = (-b.count() + 1.0).maximum(0.0)
    with b.beside():
        r, i = b.transposed(unit, "recurrent_gate_weight", x), b.transposed(unit, "input_gate_weight", x)
    r, i = ((row + b.fixed(b.given(unit, name))).sigmoid() for row, name in ((r, "recurrent_gate_bias"), (i, "input_gate_bias")))
    rate = -8 * nn.functional.softplus(b.given(unit, "recurrent_param"))
    log_decay = r * b.fixed(rate)
    gain = (-(log_decay * 2.0).apply("expm1")).apply("root")
    h = log_decay.exp() * h_before + x * i * gain.maximum(first.spread(gain.width))
    h.copy(h_after)
    b.linear(m.linear_out, (h * y.apply("gelu_tanh")).at, stream, add=True)


def attention(b: Builder, m: Attention, source: int, stream: int) -> None:
    """Attention with its cache."""
    if m.difference is not None or m.share is not None:
        raise Unplain("there is no native step for attention that is differential or lends its keys")
    heads, kv_heads, size = m.num_heads, m.num_kv_heads, m.head_dim
    with b.beside():
        q, k, v = (b.project(proj, source) for proj in (m.q_proj, m.k_proj, m.v_proj))
    gate = None
    if m.gate:
        both, q, gate = q, b.row(heads * size), b.row(heads * size)
        for h in range(heads):
            here = slice(h * size, (h + 1) * size)
            both[2 * h * size : (2 * h + 1) * size].copy(q[here])
            both[(2 * h + 1) * size : (2 * h + 2) * size].copy(gate[here])
    if m.q_norm is not None and m.k_norm is not None:
        q, k = b.normed(m.q_norm, q), b.normed(m.k_norm, k)
    keys, values = (b.next_state(-1, kv_heads, size) for _ in range(2))
    count = b.count()
    if m.rotary_base is not None:
        angle = rotary(b, count, m.rotary_base, m.rotary_dim)
        q.turn(angle, heads, m.rotary_dim // 2)
        k.turn(angle, kv_heads, m.rotary_dim // 2)
    y = b.attend(q, k, v, count, keys, values, heads=heads, kv_heads=kv_heads, window=m.window, scale=m.scale)
    if gate is not None:
        y = y * gate.sigmoid()
    b.linear(m.o_proj, y.at, stream, add=True)


# -- Mamba-3 ------------------------------------------------------------------------------------------------------------------------


def mamba3(b: Builder, m: Mamba3, source: int, stream: int) -> None:
    """Mamba-3, with any number of inputs and outputs a head up to four."""
    heads, p, n, rank, groups, turning = m.nheads, m.headdim, m.d_state, m.rank, m.ngroups, m.angles
    if rank > 4:
        raise Unplain(f"there is no native step for Mamba3 with mimo_rank={rank}")
    z, v, B, C, dt, a, mix, theta = b.project(m.in_proj, source).split(*m.sizes)
    step = (dt + b.fixed(b.given(m, "dt_bias"))).apply("softplus")
    if m.rate == "softplus":
        rate = a.apply("softplus")
    else:
        rate = a.maximum(0.0) + b.fixed(torch.ones(1)).spread(heads) / ((-a).maximum(0.0) + 1.0)
    decay = (-(rate.maximum(SLOWEST) * step)).exp()
    angle_before, angle_after = b.memory(heads, turning)
    number = b.next_state(heads, p, n)
    (k_before, k_after), (v_before, v_after) = b.memory(rank, heads, n), b.memory(heads, p)
    angle = b.row(heads * turning)
    if turning:
        speed = (theta.apply("tanh") * math.pi).again(heads) * step.spread(turning)
        b.step("phase", angle_before, speed, to=angle)
        angle.copy(angle_after)
    keys = b.row(2 * rank * heads * n)
    queries = b.row(rank * heads * n)
    apart, stride = (1, 2) if m.layout == "pairs" else (n // 2, 1)
    for raw, norm, name, to in ((B, m.B_norm, "B_bias", keys[rank * heads * n :]), (C, m.C_norm, "C_bias", queries)):
        bias = b.given(m, name).view(heads, rank, n).transpose(0, 1).flatten()
        normed, part = b.normed(norm, raw), heads // groups * n
        for i in range(rank * groups):
            here = slice(i * part, (i + 1) * part)
            b.step("add", normed[i * n : (i + 1) * n].again(heads // groups), b.fixed(bias[here]), to=to[here])
        for r in range(rank if turning else 0):
            to[r * heads * n : (r + 1) * heads * n].turn(angle, heads, apart, stride, shared=False)
    k_before.copy(keys[: rank * heads * n])
    now = mix.sigmoid() * step
    before = (step - now) * decay
    several = [None] * rank if m.mimo_x is None else list(b.given(m, "mimo_x").view(heads, rank, p).unbind(1))
    values, inputs = b.row(2 * rank * heads * p), []
    for r, weight in enumerate(several):
        old, new = (row if weight is None else row * b.fixed(weight) for row in (v_before, v))
        for j, row, strength in ((r, old, before), (rank + r, new, now)):
            b.step("multiply", row, strength.spread(p), to=values[j * heads * p : (j + 1) * heads * p])
        inputs.append(new)
    keys[rank * heads * n :].copy(k_after), v.copy(v_after)
    y = b.matrix_step(
        queries, keys, values, (heads, p, n), decay=decay, writes=2 * rank, queries=rank, scale=1.0, transposed=True, number=number
    )
    D, outputs = b.fixed(b.given(m, "D")), []
    for r, seen in enumerate(y.split(*[heads * p] * rank)):
        gate = z if m.mimo_z is None else z * b.fixed(b.given(m, "mimo_z").view(heads, rank, p)[:, r])
        output = _gated(b, m.norm, seen + inputs[r] * D.spread(p), gate)
        outputs.append(output if m.mimo_o is None else output * b.fixed(b.given(m, "mimo_o").view(heads, rank, p)[:, r]))
    total = outputs[0]
    for output in outputs[1:]:
        total = total + output
    b.linear(m.out_proj, total.at, stream, add=True)


def _gated(b: Builder, norm: GatedRMSNorm | None, y: Row, z: Row) -> Row:
    if norm is None:
        return y * z.apply("silu")
    b.read(norm, GatedRMSNorm)
    size, weight = y.width // norm.groups, b.fixed(b.given(norm, "weight"))
    if norm.norm_before_gate:
        return y.rms(size, norm.eps) * weight * z.apply("silu")
    return (y * z.apply("silu")).rms(size, norm.eps) * weight


RECURRENCES: dict[type[nn.Module], Any] = {
    GLA: gla, RetNet: retnet, HGRN2: hgrn2, DeltaNet: delta, GatedDeltaNet: delta, KDA: delta, RWKV7TimeMix: rwkv7,
    RWKV7ChannelMix: rwkv7_channel, MLSTM: mlstm, SLSTM: slstm, RGLRU: rg_lru, Attention: attention, Mamba3: mamba3,
    LogLinearMamba2: log_linear_mamba2, LogLinearGatedDeltaNet: delta, MesaNet: mesa,
}  # fmt: skip
