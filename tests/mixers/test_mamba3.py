"""Mamba-3 against its formulas written out, in both forms, and its limits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import statescan as ss
from statescan.mixers import Mamba3
from statescan.ops import ssd


def mixer(**options: Any) -> Mamba3:
    """In float64, with every parameter away from its initial value, and steps that turn far."""
    torch.manual_seed(0)
    made = Mamba3(12, **{"d_state": 8, "headdim": 4, **options}).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        made.dt_bias.add_(3.0)
    return made


def parts(m: Mamba3, u: torch.Tensor) -> dict[str, torch.Tensor]:
    """The streams of one row u (L, D), as the formulas name them."""
    E, G, N, R, H = m.d_inner, m.ngroups, m.d_state, m.rank, m.nheads
    z, v, B, C, dt, a, mix, theta = (u @ m.in_proj.weight.T).split([E, E, N * G * R, N * G * R, H, H, H, m.angles], -1)

    def normed(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        x = x.view(-1, R, G, N)
        x = x / (x.square().mean(-1, keepdim=True) + m.B_norm.eps).sqrt() * weight
        return torch.stack([torch.stack([x[:, r, h * G // H] + bias[h, r] for h in range(H)], 1) for r in range(R)], 1)

    delta = F.softplus(dt + m.dt_bias)
    f = F.softplus(a) if m.rate == "softplus" else torch.where(a >= 0, 1 + a, 1 / (1 - a))
    return {
        "z": z.view(-1, H, m.headdim), "v": v.view(-1, H, m.headdim), "k": normed(B, m.B_norm.weight, m.B_bias),
        "q": normed(C, m.C_norm.weight, m.C_bias), "delta": delta, "alpha": torch.exp(-f.clamp(min=1e-4) * delta),
        "mix": torch.sigmoid(mix), "turn": math.pi * torch.tanh(theta)[:, None, :] * delta[:, :, None],
    }  # fmt: skip


def loop(m: Mamba3, u: torch.Tensor) -> torch.Tensor:
    """One row (L, D) in complex numbers: the state turns, keys and queries do not."""
    p = parts(m, u)
    L, R, H, N = p["k"].shape
    pairs = [(2 * i, 2 * i + 1) for i in range(m.angles)] if m.layout == "pairs" else [(i, i + N // 2) for i in range(m.angles)]
    still = [n for n in range(N) if all(n not in pair for pair in pairs)]

    def numbers(x: torch.Tensor) -> torch.Tensor:
        """(..., N) -> complex (..., T + the rest)."""
        turning = [torch.complex(x[..., i], x[..., j]) for i, j in pairs]
        return torch.stack([*turning, *(torch.complex(x[..., n], torch.zeros_like(x[..., n])) for n in still)], -1)

    k, q = numbers(p["k"]), numbers(p["q"])
    ones = torch.ones(H, R, m.headdim, dtype=torch.float64)
    mx, mz, mo = (ones if w is None else w for w in (m.mimo_x, m.mimo_z, m.mimo_o))
    S = torch.zeros(H, m.headdim, k.shape[-1], dtype=torch.complex128)
    outputs = []
    for t in range(L):
        turn = F.pad(p["turn"][t], (0, len(still)))
        inputs = mx * p["v"][t][:, None]
        factor = p["alpha"][t][:, None] * torch.exp(torch.complex(torch.zeros_like(turn), -turn))
        if t:
            before = ((1 - p["mix"][t]) * p["delta"][t])[:, None, None]
            S = S + before * torch.einsum("hrp,rhn->hpn", (mx * p["v"][t - 1][:, None]).to(k.dtype), k[t - 1])
        S = factor[:, None] * S
        S = S + (p["mix"][t] * p["delta"][t])[:, None, None] * torch.einsum("hrp,rhn->hpn", inputs.to(k.dtype), k[t])
        y = torch.einsum("hpn,rhn->hrp", S, q[t].conj()).real + m.D[:, None, None] * inputs
        if m.norm is not None:
            y = y / (y.square().mean(-1, keepdim=True) + m.norm.eps).sqrt() * m.norm.weight.view(H, 1, -1)
        outputs.append((mo * y * F.silu(mz * p["z"][t][:, None])).sum(1).flatten())
    return torch.stack(outputs) @ m.out_proj.weight.T


FORMS = [
    {}, {"ngroups": 2}, {"rope_fraction": 1.0, "rate": "softplus"}, {"layout": "halves"}, {"mimo_rank": 3}, {"outproj_norm": True},
    {"mimo_rank": 2, "outproj_norm": True, "layout": "pairs", "ngroups": 3},
]  # fmt: skip


@pytest.mark.parametrize("options", FORMS)
def test_the_formulas_in_complex_numbers(options: dict[str, Any]) -> None:
    m = mixer(**options)
    u = torch.randn(2, 23, 12, dtype=torch.float64)
    expected = torch.stack([loop(m, row) for row in u])
    torch.testing.assert_close(m(u), expected, atol=1e-11, rtol=0)
    first, state = m(u[:, :9], return_state=True)
    torch.testing.assert_close(torch.cat([first, m(u[:, 9:], state=state)], 1), expected, atol=1e-11, rtol=0)


def test_one_input_with_weights_of_one_is_the_plain_form() -> None:
    several, plain = mixer(mimo_rank=1, layout="pairs"), mixer()
    missing, extra = plain.load_state_dict(several.state_dict(), strict=False)
    assert not missing
    assert sorted(extra) == ["mimo_o", "mimo_x", "mimo_z"]
    with torch.no_grad():
        for weight in (several.mimo_o, several.mimo_x, several.mimo_z):
            assert weight is not None
            weight.fill_(1.0)
    u = torch.randn(1, 11, 12, dtype=torch.float64)
    torch.testing.assert_close(several(u), plain(u), atol=1e-13, rtol=0)


def test_the_layouts_differ_by_an_order_of_the_states() -> None:
    pairs, halves = mixer(), mixer(layout="halves")
    N, T = 8, pairs.angles
    order = torch.tensor([*range(0, 2 * T, 2), *range(2 * T, 2 * T + N // 2 - T), *range(1, 2 * T, 2), *range(2 * T + N // 2 - T, N)])
    weights = {name: tensor.clone() for name, tensor in pairs.state_dict().items()}
    for name in ("B_bias", "C_bias", "B_norm.weight", "C_norm.weight"):
        weights[name] = weights[name][..., order]
    rows, start = weights["in_proj.weight"].clone(), 2 * pairs.d_inner
    for first in (start, start + N):
        weights["in_proj.weight"][first : first + N] = rows[first : first + N][order]
    halves.load_state_dict(weights)
    u = torch.randn(1, 13, 12, dtype=torch.float64)
    torch.testing.assert_close(halves(u), pairs(u), atol=1e-12, rtol=0)


def test_without_turns_and_with_eulers_step_it_is_mamba_2s_scan() -> None:
    m = mixer()
    with torch.no_grad():
        m.B_bias.zero_(), m.C_bias.zero_()
        first = 2 * m.d_inner + 2 * m.d_state
        m.in_proj.weight[first + m.nheads : first + 2 * m.nheads] = 0  # a: the rate is 1
        m.in_proj.weight[first + 3 * m.nheads :] = 0  # no turns
    u = torch.randn(1, 17, 12, dtype=torch.float64)
    with torch.no_grad():  # lambda is 1 where its logit is large: here the first input is constant
        u[..., 0] = 1.0
        m.in_proj.weight[first + 2 * m.nheads : first + 3 * m.nheads] = 0
        m.in_proj.weight[first + 2 * m.nheads : first + 3 * m.nheads, 0] = 60.0
    p = parts(m, u[0])
    y = ssd(
        p["v"][None], p["delta"][None], -torch.ones(m.nheads, dtype=torch.float64), p["k"][None, :, 0], p["q"][None, :, 0], m.D.detach()
    )
    expected = (y[0] * F.silu(p["z"])).flatten(1) @ m.out_proj.weight.T
    torch.testing.assert_close(m(u)[0], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("d_model", "options", "count"),
    [
        (768, {}, 3_821_872), (768, {"mimo_rank": 4}, 4_448_560), (768, {"mimo_rank": 4, "outproj_norm": True}, 4_450_096),
        (768, {"rope_fraction": 1.0}, 3_846_448), (1024, {}, 6_693_184), (1024, {"mimo_rank": 4}, 7_528_768),
        (1536, {}, 14_831_968), (1536, {"mimo_rank": 4}, 16_085_344), (2048, {}, 26_165_632), (2048, {"mimo_rank": 4}, 27_836_800),
    ],
)  # fmt: skip
def test_parameters(d_model: int, options: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in Mamba3(d_model, **options).parameters()) == count


def test_parity_is_a_half_turn_a_bit() -> None:
    """No decay and theta delta = pi times the bit: the sign of the state's first pair tells the parity, for as long as it runs."""
    m = Mamba3(2, d_state=4, expand=1, headdim=1, rope_fraction=0.5).double()
    _, v, _, _, _, a, mix, theta = torch.arange(sum(m.sizes)).split(m.sizes)
    with torch.no_grad():
        m.in_proj.weight.zero_(), m.B_bias.zero_(), m.C_bias.zero_(), m.D.zero_()
        # A position's two inputs: a bit, and a one at the first position only.
        m.in_proj.weight[theta, 0] = 30.0
        m.dt_bias.fill_(math.log(math.e - 1))  # a step of one
        m.in_proj.weight[a] = -1e8  # the slowest rate: 1e-4
        m.in_proj.weight[mix] = 60.0
        m.in_proj.weight[v, 1] = 1.0
        m.B_bias[..., 0] = m.C_bias[..., 0] = 1.0
    bits = torch.randint(0, 2, (300,))
    bits[0] = 0
    u = torch.stack([bits, torch.zeros(300)], -1).double()[None]
    u[0, 0, 1] = 1.0
    _, state = m(u, return_state=True)
    assert state.angle.shape == (1, 2, 1)
    total = int(bits.sum())
    half = torch.tensor(math.pi * (total % 2), dtype=torch.float64)
    torch.testing.assert_close(state.angle[0, 0, 0].cos(), half.cos(), atol=1e-9, rtol=0)


def test_it_is_told_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="headdim must divide expand \\* d_model = 24"):
        ss.Spec("Mamba3", headdim=7)(12)
    with pytest.raises(ValueError, match="needs an even d_state; got 7"):
        Mamba3(12, d_state=7, headdim=4)


def test_a_second_derivative_through_the_recomputed_backward() -> None:
    """The step goes into the decay: what one input gives to another must not be counted twice."""
    torch.manual_seed(0)
    m, u, to = Mamba3(8, d_state=4, headdim=4, mimo_rank=2), torch.randn(1, 5, 8), torch.randn(1, 5, 8)

    def second(**how: str) -> torch.Tensor:
        x = u.clone().requires_grad_()
        with ss.implementation(linear_attention="portable", diagonal_scan="portable", causal_conv1d="portable", rms_norm="portable", **how):
            (first,) = torch.autograd.grad((m(x) * to).sum(), x, create_graph=True)
            return torch.autograd.grad(first.square().sum(), x)[0]

    torch.testing.assert_close(second(), second(mamba3="portable"), rtol=1e-4, atol=1e-5)
