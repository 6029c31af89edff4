"""Long convolutions, SGConv, moving averages, multi-head systems: the sums written out, and what each paper warns of."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from statescan.mixers import (
    S4D,
    BidirectionalEMA,
    BidirectionalLongConv,
    BidirectionalSGConv,
    LongConv,
    MultiHeadEMA,
    MultiHeadSSM,
    SGConv,
)  # fmt: skip
from statescan.mixers.bidirectional import Bidirectional
from statescan.parameters import parameter_groups
from statescan.spec import Spec
from statescan.timeline import Timeline


def bare(layer: nn.Module) -> nn.Module:
    """Without anything behind the convolution."""
    layer.out_proj = nn.Identity()
    layer.activation, layer.final_act = "none", "none"
    return layer.double().eval()


def convolved(x: Tensor, k: Tensor, back: Tensor | None = None) -> Tensor:
    """The sums as they stand: x (B, L, D), k and back (D, K)."""
    y = torch.zeros_like(x)
    for t in range(x.shape[1]):
        for s in range(x.shape[1]):
            lag = t - s
            if 0 <= lag < k.shape[1]:
                y[:, t] += k[:, lag] * x[:, s]
            elif back is not None and 0 < -lag <= back.shape[1]:
                y[:, t] += back[:, -lag - 1] * x[:, s]
    return y


@pytest.mark.parametrize("length", [3, 8, 21])
def test_long_conv_is_the_sum(length: int) -> None:
    torch.manual_seed(0)
    layer = bare(LongConv(3, 8, 2, lam=0.001))
    x = torch.randn(2, length, 3, dtype=torch.float64)
    wide = torch.cat([x, x], -1)
    k = layer.filter.kernel.detach()
    k = k.sign() * (k.abs() - 0.001).clamp(min=0)
    torch.testing.assert_close(layer.kernel(5), k[:, :5])
    torch.testing.assert_close(layer.kernel(11), nn.functional.pad(k, (0, 3)))
    torch.testing.assert_close(layer(x), convolved(wide, k) + layer.D * wide, atol=1e-14, rtol=0)


@pytest.mark.parametrize("length", [5, 8])
def test_bidirectional_long_conv_is_circular_at_its_length(length: int) -> None:
    torch.manual_seed(0)
    layer = bare(BidirectionalLongConv(3, 8, lam=0.0, kernel_dropout=0.0))
    x = torch.randn(2, length, 3, dtype=torch.float64)
    k = layer.filter.kernel.detach()
    torch.testing.assert_close(layer(x), convolved(x, k[:, :8], k[:, 8:].flip(-1)) + layer.D * x, atol=1e-14, rtol=0)
    if length == 8:
        spectrum = torch.fft.rfft(x.mT, n=16) * torch.fft.rfft(k, n=16)
        published = torch.fft.irfft(spectrum, n=16)[..., :8].mT + layer.D * x
        torch.testing.assert_close(layer(x), published, atol=1e-14, rtol=0)


def test_the_squash_is_the_proximal_operator() -> None:
    layer = LongConv(4, 16, lam=0.002)
    k, lam = layer.filter.kernel.detach(), 0.002
    found = layer.eval().kernel(16).detach()

    def objective(z: Tensor) -> Tensor:
        return 0.5 * (z - k).square() + lam * z.abs()

    for step in (-1e-3, -1e-4, 1e-4, 1e-3):
        assert (objective(found) <= objective(found + step) + 1e-12).all()


def test_a_dead_kernel_is_refused_and_a_live_one_is_not() -> None:
    with pytest.raises(ValueError, match="a kernel of zeros gets no gradient"):
        LongConv(16, 64, lam=0.1)
    torch.manual_seed(0)
    layer = LongConv(64, 256, lam=0.001).eval()
    assert float((layer.kernel(256) != 0).float().mean()) == pytest.approx(0.617, abs=0.01)
    layer = LongConv(64, 256, lam=0.003)
    layer(torch.randn(2, 32, 64)).sum().backward()
    assert layer.filter.kernel.grad.any()


def test_kernel_dropout_and_smoothing() -> None:
    torch.manual_seed(0)
    layer = LongConv(8, 512, lam=0.0, kernel_dropout=0.5)
    assert float((layer.kernel(512) == 0).float().mean()) == pytest.approx(0.5, abs=0.05)
    assert (layer.eval().kernel(512) != 0).all()
    smooth = LongConv(8, 512, lam=0.0, smooth=7).eval()
    expected = smooth.filter.kernel[:, 100:107].mean(-1)
    torch.testing.assert_close(smooth.kernel(512)[:, 103], expected)


def test_initial_kernels() -> None:
    torch.manual_seed(0)
    assert float(LongConv(64, 256).filter.kernel.detach().std()) == pytest.approx(0.002, rel=0.02)
    k = LongConv(64, 4096, init="double_exp").filter.kernel.detach()
    assert float(k[:, :64].std()) == pytest.approx(0.02 * 0.9, rel=0.1)
    assert float(k[63, -256:].std()) < 1e-9 < float(k[0, -256:].std())


def test_rates_of_kernels() -> None:
    layers = nn.ModuleList([LongConv(4, 8, kernel_lr=5e-4), SGConv(4, 8, 2), MultiHeadEMA(4, 2)])
    names = {id(p): n for n, p in layers.named_parameters()}
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in parameter_groups(layers, lr=1e-2) for p in g["params"]}
    assert found["0.filter.kernel"] == (5e-4, 0.0)
    assert found["1.filter.pieces"] == (1e-3, 0.0)
    assert found["2.average.delta"] == (1e-3, 0.0)
    assert found["0.out_proj.weight"] == (1e-2, 0.1)


@pytest.mark.parametrize(
    ("cls", "l_max", "scales", "kernel", "total"),
    [(SGConv, 1024, 6, 49_152, 115_200), (SGConv, 16384, 10, 81_920, 147_968), (BidirectionalSGConv, 1 << 20, 16, 262_144, 328_192)],
)
def test_sgconv_counts(cls: type, l_max: int, scales: int, kernel: int, total: int) -> None:
    with torch.device("meta"):
        layer = cls(256, l_max, 32)
    assert len(layer.filter.pieces) == scales
    assert layer.filter.pieces.numel() == kernel
    assert sum(p.numel() for p in layer.parameters()) == total
    assert layer.filter.whole().shape[-1] == 32 * 2 ** (scales - 1)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_sgconv_kernel(mode: str) -> None:
    torch.manual_seed(0)
    layer = SGConv(5, 64, 4, mode=mode).double()  # type: ignore[arg-type]
    whole = layer.filter.whole()
    assert whole.shape == (5, 64)
    torch.testing.assert_close(whole.norm(dim=-1), torch.ones(5, dtype=torch.float64), atol=1e-6, rtol=0)
    copy = SGConv(5, 64, 4, mode=mode).double()  # type: ignore[arg-type]
    copy.load_state_dict(layer.state_dict())
    torch.testing.assert_close(copy.kernel(64), layer.kernel(64))
    with torch.no_grad():
        layer.filter.pieces.fill_(1.0)
    ones = layer.filter.whole() * layer.filter.norm
    ends = [0, 4, 8, 16, 32, 64]
    for i, (start, stop) in enumerate(itertools.pairwise(ends)):
        torch.testing.assert_close(ones[:, start:stop], torch.full_like(ones[:, start:stop], 2.0 ** (4 - i)))
    with torch.no_grad():
        layer.filter.pieces[1:] = 0
    assert layer.kernel(64)[:, :4].all()
    assert not layer.kernel(64)[:, 4:].any()


@pytest.mark.parametrize("cls", [SGConv, BidirectionalSGConv])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_sgconv_pieces_that_add_up(cls: type, mode: str) -> None:
    torch.manual_seed(0)
    filter = cls(5, 64, 4, mode=mode, join="sum", decay_max=3.0).filter.double()
    whole = filter.whole() * filter.norm
    assert whole.shape[-1] == 64
    torch.testing.assert_close(filter.whole().norm(dim=-1), torch.ones(len(whole), dtype=torch.float64), atol=1e-6, rtol=0)
    alpha = torch.linspace(2, 3, 5, dtype=torch.float64).repeat(len(whole) // 5)
    expected = torch.zeros_like(whole)
    for i, piece in enumerate(filter.pieces.detach()):
        for tap in range(4 * 2**i):
            # the middle of a tap lies at (tap + 1/2) / 2^i - 1/2 among those of the piece
            place = torch.tensor((tap + 0.5) / 2**i - 0.5).clamp(0, 3)
            low, part = int(place), float(place % 1)
            value = (1 - part) * piece[:, low] + part * piece[:, min(low + 1, 3)] if mode == "linear" else piece[:, tap // 2**i]
            expected[:, tap] += alpha ** (4 - i) * value
    torch.testing.assert_close(whole, expected, atol=1e-5, rtol=1e-6)  # alpha is kept in float32


@pytest.mark.parametrize("join", ["cat", "sum"])
@pytest.mark.parametrize("cls", [SGConv, BidirectionalSGConv])
def test_sgconv_learns_a_power_of_the_distance(cls: type, join: str) -> None:
    torch.manual_seed(0)
    layer = bare(cls(3, 16, 2, join=join, decay="power", decay_min=0.5, decay_max=1.5))
    filter = layer.filter
    power = filter.power.detach()
    assert ((power >= 0.5) & (power <= 1.5)).all()
    assert len(power.unique()) == 3
    assert sum(p.numel() for p in layer.parameters()) == sum(p.numel() for p in cls(3, 16, 2).parameters()) + 3 - 12
    torch.testing.assert_close(filter.whole().norm(dim=-1), torch.ones(len(filter.norm), dtype=torch.float64), atol=1e-6, rtol=0)
    with torch.no_grad():
        filter.pieces.fill_(1.0)
        filter.pieces[1:] *= join == "cat"
        ones = filter.whole() * filter.norm
    reach = 16 if join == "cat" else 2
    law = torch.arange(1, 17, dtype=torch.float64) ** -power.repeat(len(ones) // 3).unsqueeze(-1)
    torch.testing.assert_close(ones[:, :reach], law[:, :reach])
    assert not ones[:, reach:].any()
    x = torch.randn(1, 20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    base = layer(x).square().sum()
    base.backward()
    with torch.no_grad():
        filter.power[1] += 1e-6
        change = float(layer(x).square().sum() - base.detach()) / 1e-6
    assert float(filter.power.grad[1]) == pytest.approx(change, rel=1e-4)
    names = {id(p): n for n, p in layer.named_parameters()}
    slow = {names[id(p)] for g in parameter_groups(layer, lr=1e-2) if g["lr"] == 1e-3 for p in g["params"]}
    assert slow == {"filter.pieces", "filter.power"}


def test_sgconv_sums() -> None:
    torch.manual_seed(0)
    layer, x = bare(SGConv(3, 11, 2)), torch.randn(2, 14, 3, dtype=torch.float64)
    torch.testing.assert_close(layer(x), convolved(x, layer.kernel(11)) + layer.D * x, atol=1e-13, rtol=0)
    both = bare(BidirectionalSGConv(3, 11, 2))
    k, back = both.taps()
    torch.testing.assert_close(both(x), convolved(x, k, back) + both.D * x, atol=1e-13, rtol=0)


def test_averages() -> None:
    torch.manual_seed(0)
    layer, x = MultiHeadEMA(3, 4, activation="none").double(), torch.randn(2, 12, 3, dtype=torch.float64)
    average = layer.average
    p = average.delta.sigmoid()
    q = 1 - p * average.alpha.sigmoid()
    k = torch.stack([(p * average.beta * average.gamma * 4**-0.5 * q**lag).sum(-1) for lag in range(12)], -1).detach()
    torch.testing.assert_close(layer.kernel(12), k)
    torch.testing.assert_close(layer(x), convolved(x, k) + layer.D * x, atol=1e-13, rtol=0)
    both = BidirectionalEMA(3, 4, activation="none").double()
    both.ahead.load_state_dict(average.state_dict())
    both.behind.load_state_dict(average.state_dict())
    expected = convolved(x, k) + convolved(x.flip(1), k).flip(1) + both.D * x
    torch.testing.assert_close(both(x), expected, atol=1e-13, rtol=0)
    assert sum(p.numel() for p in MultiHeadEMA(160, 16).parameters()) == 160 * (4 * 16 + 1)


def test_one_head_without_a_gate_is_s4d() -> None:
    torch.manual_seed(0)
    layer = MultiHeadSSM(6, 1, 4, gated=False).double()
    plain = S4D(6, 4, n_ssm=1, activation="none", final_act="none").double()
    state = layer.state_dict()
    nn.init.eye_(layer.in_proj.weight)
    nn.init.zeros_(layer.in_proj.bias)
    plain.load_state_dict({name: value for name, value in state.items() if not name.startswith("in_proj")})
    x = torch.randn(2, 15, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), plain(x))


def test_heads_meet_at_the_gate_only() -> None:
    torch.manual_seed(0)
    layer = MultiHeadSSM(8, 4, 4).double()
    nn.init.eye_(layer.in_proj.weight)
    layer.out_proj = nn.Identity()
    x = torch.randn(1, 9, 8, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x)[0, -1], x)[:, 0].abs().sum(1)  # (4 outputs, 8 channels)
    # output j of channels d = 4 i + h: head h of 0, 1 with head h + 2
    expected = torch.zeros(4, 8, dtype=torch.bool)
    for i in range(2):
        for h in range(2):
            expected[2 * i + h, 4 * i + h] = expected[2 * i + h, 4 * i + h + 2] = True
    assert torch.equal(jacobian > 0, expected)


def test_reversing_the_input_swaps_the_copies() -> None:
    torch.manual_seed(0)
    layer = Bidirectional(8, Spec(MultiHeadSSM, heads=2, d_state=4)).double()
    swapped = Bidirectional(8, Spec(MultiHeadSSM, heads=2, d_state=4)).double()
    swapped.ahead.load_state_dict(layer.behind.state_dict())
    swapped.behind.load_state_dict(layer.ahead.state_dict())
    x = torch.randn(2, 11, 8, dtype=torch.float64)
    torch.testing.assert_close(swapped(x.flip(1)), layer(x).flip(1))


def test_errors() -> None:
    with pytest.raises(ValueError, match="odd width"):
        LongConv(4, 8, smooth=4)
    with pytest.raises(ValueError, match="no notion of elapsed time"):
        LongConv(4, 8)(torch.randn(1, 3, 4), Timeline(interval=2.0))
    with pytest.raises(ValueError, match="expected a WindowState"):
        SGConv(4, 8, 2)(torch.randn(1, 3, 4), state=(torch.zeros(1),))
    with pytest.raises(ValueError, match="be even if they gate"):
        MultiHeadSSM(9, 3)
