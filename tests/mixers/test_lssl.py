"""LSSL: its structured matrices, counts, and that it is one system however it is run."""

from __future__ import annotations

import pytest
import torch

from statescan import Spec, Timeline
from statescan.dynamics import discretize_dense, hippo
from statescan.mixers.lssl import LSSL
from statescan.mixers.two_sided import TwoSided
from statescan.ops import fft_conv


def build(*args: object, **kwargs: object) -> LSSL:
    torch.manual_seed(0)
    return LSSL(*args, **kwargs).eval()  # type: ignore[arg-type]


def data(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# those of one readout are counted of the published layer; another readout adds H N + H of C and D, and H H of the mixing
@pytest.mark.parametrize(
    ("learn", "channels", "count"), [(0, 1, 33_024), (1, 1, 34_050), (2, 1, 148_096), (0, 2, 65_920), (1, 3, 99_842), (2, 2, 180_992)]
)
def test_parameter_counts_of_the_layer(learn: int, channels: int, count: int) -> None:
    with torch.device("meta"):
        layer = LSSL(128, 128, learn=learn, channels=channels)
    assert sum(p.numel() for p in layer.parameters()) == count


def test_the_tridiagonal_form_starts_as_legs() -> None:
    A, B = build(2, 16).continuous()
    expected, b = hippo("legs", 16)
    assert (A[0] - expected).abs().max() < 1e-5  # parameters are stored in single precision
    assert (B[0] - b).abs().max() < 1e-6


@pytest.mark.parametrize(("learn", "channels"), [(0, 1), (1, 1), (2, 1), (1, 3), (2, 2)])
def test_kernel_is_the_dense_one_and_the_steps_answer(learn: int, channels: int) -> None:
    layer = build(3, 12, learn=learn, channels=channels).double()
    x, length = data(2, 70, 3), 70
    kernel = layer.kernel(length)
    A, B = layer.continuous()
    for channel in range(3):
        Abar, Bbar = discretize_dense(A[channel % len(A)], B[channel % len(B)], float(layer.delta_log[channel].detach().exp()))
        powers = [Bbar]
        for _ in range(length - 1):
            powers.append(Abar @ powers[-1])
        for row in range(channel, 3 * channels, 3):
            assert (layer.C[row] @ torch.stack(powers, -1) - kernel[row]).abs().max() < 1e-11
    passed = torch.cat([fft_conv(x, rows) for rows in kernel.split(3)], -1) + layer.D * x.repeat(1, 1, channels)
    assert (layer.out_proj(torch.nn.functional.gelu(passed)) - layer(x)).abs().max() < 1e-12
    state, outputs = layer.init_state(2), []
    for t in range(length):
        y, state = layer.step(x[:, t], state)
        outputs.append(y)
    by_steps = torch.stack(outputs, 1)
    assert (layer(x) - by_steps).abs().max() < 1e-11
    y, last = layer.scan(x)
    assert (y - by_steps).abs().max() < 1e-11
    assert (last.ssm - state.ssm).abs().max() < 1e-11


@pytest.mark.parametrize("channels", [1, 2])
def test_gradients_of_the_convolution_equal_those_of_the_scan(channels: int) -> None:
    layer, x = build(3, 8, channels=channels).double(), data(1, 80, 3)
    results = []
    for way in (lambda: layer(x), lambda: layer.scan(x)[0]):
        layer.zero_grad()
        way().square().sum().backward()
        results.append({name: p.grad for name, p in layer.named_parameters()})
    for name, expected in results[0].items():
        assert expected is not None
        assert (results[1][name] - expected).abs().max() <= 1e-9 * expected.abs().max(), name


def test_a_change_of_the_sampling_rate() -> None:
    layer = build(3, 16).double()
    t = torch.arange(512, dtype=torch.float64) / 512
    x = torch.stack([torch.sin(7 * t), torch.cos(5 * t), t], -1).unsqueeze(0)
    fine, coarse, wrong = layer(x)[:, 1::2], layer(x[:, 1::2], Timeline(interval=2.0)), layer(x[:, 1::2])
    error, other = (coarse - fine)[:, 32:].norm() / fine.norm(), (wrong - fine)[:, 32:].norm() / fine.norm()
    assert error < 0.03
    assert other > 5 * error


def test_readouts_under_a_mask_and_both_ways() -> None:
    layer, x = build(3, 8, channels=2).double(), data(2, 20, 3)
    mask = torch.rand(2, 20, generator=torch.Generator().manual_seed(2)) < 0.6
    y = layer(x, Timeline(mask=mask))
    for row in range(2):
        assert (y[row, mask[row]] - layer(x[row : row + 1, mask[row]])[0]).abs().max() < 1e-12
    both = TwoSided(3, Spec(LSSL, d_state=8, channels=2, activation="none")).double()
    ahead, back = both.ahead.kernel(20), both.ahead.kernel(20, readout=both.readout_back)
    wide = x.repeat(1, 1, 2)
    assert (both(x) - both.ahead.out_proj(fft_conv(wide, ahead, back) + both.ahead.D * wide)).abs().max() < 1e-12
    with pytest.raises(ValueError, match="channels must be positive"):
        LSSL(3, 8, channels=0)
