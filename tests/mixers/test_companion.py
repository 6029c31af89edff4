"""Companion and shift systems: what they represent exactly, the closed loop, and the filters in front."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from statescan.mixers.companion import ClosedLoopCompanion, Companion, CompanionState, unit_rows
from statescan.mixers.s4d import S4D
from statescan.mixers.shift import SeriesFilters, Shift, difference_taps, shift_taps
from statescan.ops.companion_kernel import companion_kernel
from statescan.ops.companion_kernel.reference import companion
from statescan.testing import check_mixer
from statescan.timeline import Timeline


def autoregression(phi: Tensor, length: int, seed: int = 0) -> Tensor:
    """x_t = sum_i phi_i x_{t-1-i}, from random first values."""
    values = torch.randn(len(phi), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
    while len(values) < length:
        values.append(sum(p * v for p, v in zip(phi.tolist(), reversed(values[-len(phi) :]), strict=True)))
    return torch.tensor(values, dtype=torch.float64)


@torch.no_grad()
def set_rows(layer: ClosedLoopCompanion, **rows: Tensor) -> None:
    for name, value in rows.items():
        getattr(layer, name).copy_(value.expand_as(getattr(layer, name)))


def loop(d_model: int, d_state: int, normalise: bool = True, seed: int = 0) -> ClosedLoopCompanion:
    torch.manual_seed(seed)
    return ClosedLoopCompanion(d_model, d_state, normalise=normalise).double()


def test_an_autoregression_is_continued_exactly() -> None:
    # two oscillations that do not die away: 1 - sum phi_i z^(i+1) = (1 - 2 cos(0.5) z + z^2) (1 - 2 cos(1.3) z + z^2)
    p, q = 2 * math.cos(0.5), 2 * math.cos(1.3)
    phi = torch.tensor([p + q, -2 - p * q, p + q, -1], dtype=torch.float64)
    series = autoregression(phi, 80)
    layer = loop(1, 4, normalise=False)
    set_rows(layer, a=torch.zeros(4), b=torch.tensor([1.0, 0, 0, 0]), c=phi, k=phi)
    with torch.no_grad():
        y, state = layer.scan(series[:30].view(1, -1, 1))
        ahead = layer.roll(state, 50)
    assert (y[0, 4:, 0] - series[5:31]).abs().max() < 1e-12
    assert (ahead[0, :, 0] - series[30:]).abs().max() < 1e-11
    assert series[60:].abs().max() > 0.5


def test_without_the_loop_it_decays() -> None:
    layer = loop(3, 5)
    set_rows(layer, k=torch.zeros(1))
    state = CompanionState(torch.randn(2, 3, 5, dtype=torch.float64))
    y = layer.roll(state, 7)
    a, _, c = layer.rows()
    x = state.x
    for h in range(7):
        assert (y[:, h] - (c * x).sum(-1)).abs().max() < 1e-13
        x = torch.einsum("dmn,bdn->bdm", companion(a), x)


def test_the_closed_loop_feeds_itself_what_it_expects() -> None:
    layer = loop(3, 5)
    u = torch.randn(2, 11, 3, dtype=torch.float64)
    with torch.no_grad():
        y, state = layer.scan(u)
        ahead = layer.roll(state, 9)
        assert (ahead[:, 0] - y[:, -1]).abs().max() < 1e-12
        expected = layer.expect(u)[:, -1]
        for h in range(1, 9):
            y_t, state = layer.step(expected, state)
            expected = (layer.row("k") * state.x).sum(-1)
            assert (ahead[:, h] - y_t).abs().max() < 1e-12
    with pytest.raises(ValueError, match="horizon must be positive"):
        layer.roll(state, 0)


@pytest.mark.parametrize("length", [2, 5, 31])
def test_the_state_behind_a_convolution_is_the_recurrence(length: int) -> None:
    """Shorter and longer than the delay line, with a state coming in."""
    torch.manual_seed(0)
    layer = Companion(4, 5, n_kernels=2).double()
    u, start = torch.randn(2, length, 4, dtype=torch.float64), CompanionState(torch.randn(2, 4, 5, dtype=torch.float64))
    y, last = layer.scan(u, start)
    state = start
    for t in range(length):
        y_t, state = layer.step(u[:, t], state)
        assert (y[:, t] - y_t).abs().max() < 1e-12
    assert (last.x - state.x).abs().max() < 1e-12
    line = Timeline(reset=torch.zeros(2, length, dtype=torch.bool))
    y_scan, last_scan = layer.scan(u, start, line)
    assert (y - y_scan).abs().max() < 1e-12
    assert (last.x - last_scan.x).abs().max() < 1e-12


def test_a_delay_is_exact_and_a_small_diagonal_system_cannot() -> None:
    """y_t = u_{t-3} is c = e_4 with a shift. No sum of modes ends (four of them that vanish four times in a row vanish everywhere), so a
    diagonal system of as many states can only come near, by modes that nearly coincide; fitted, it has not."""
    target = torch.zeros(24, dtype=torch.float64)
    target[3] = 1
    e = torch.eye(4, dtype=torch.float64)
    assert torch.equal(companion_kernel(torch.zeros(4, dtype=torch.float64), e[0], e[3], 24).round(decimals=14), target)
    torch.manual_seed(0)
    layer = S4D(1, 4, dt_min=0.3, dt_max=0.3).double()
    optimizer = torch.optim.Adam([layer.C, layer.B, layer.delta_raw, layer.A_real_raw, layer.A_imag_raw], lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        loss = (layer.kernel(24)[0] - target).square().sum()
        loss.backward()
        optimizer.step()
    assert loss > 1e-3


def test_rows_are_normalised_and_roots_stay_inside() -> None:
    rows = torch.randn(6, 9, dtype=torch.float64)
    rows[2] = 0
    unit = unit_rows(rows)
    assert torch.allclose(unit.abs().sum(-1), torch.tensor([1.0, 1, 0, 1, 1, 1], dtype=torch.float64))
    assert torch.linalg.eigvals(companion(unit)).abs().max() <= 1 + 1e-12
    assert torch.equal(unit_rows(1e-7 * rows), 1e-7 * rows)


def test_channels_of_one_kernel_are_neighbours() -> None:
    torch.manual_seed(0)
    kernel = Companion(6, 4, n_kernels=3).kernel(10)
    assert torch.equal(kernel[0::2], kernel[1::2])
    assert not torch.equal(kernel[0], kernel[2])
    with pytest.raises(ValueError, match="n_kernels divide d_model"):
        Companion(6, 4, n_kernels=4)


def test_shift_is_a_companion_without_feedback() -> None:
    torch.manual_seed(0)
    layer = Shift(3, 7, learn_b=True).double()
    with torch.no_grad():
        layer.b.add_(torch.randn(3, 7))
    expected = companion_kernel(torch.zeros(3, 7, dtype=torch.float64), layer.b.double(), layer.c, 7)
    assert (shift_taps(layer.b, layer.c) - expected).abs().max() < 1e-13
    plain = Shift(3, 7)
    assert torch.equal(shift_taps(plain.b, plain.c), plain.c)
    impulse = torch.zeros(1, 12, 3)
    impulse[:, 0] = 1
    response = plain(impulse)[0].T
    expected = torch.nn.functional.pad(plain.c, (0, 5))
    expected[:, 0] += plain.D
    assert torch.allclose(response, expected, atol=1e-6)


def test_filters_take_differences_and_moving_averages() -> None:
    assert difference_taps(3, 5).tolist() == [1, -3, 3, -1, 0]
    torch.manual_seed(0)
    layer = SeriesFilters(16, most=9).double()
    t = torch.arange(30, dtype=torch.float64)
    cubic = (t**3 - 4 * t).view(1, -1, 1).expand(1, -1, 16)
    y = layer(cubic)[0]
    for group in (0, 8):
        assert torch.equal(y[:, group], cubic[0, :, 0])
        assert torch.allclose(y[3:, group + 3], torch.full((27,), 6.0, dtype=torch.float64))  # the third difference of t^3
        for channel in range(group + 4, group + 8):
            window = int((layer.filters[channel] != 0).sum())
            assert 4 <= window < 9
            mean = cubic[0, :, 0].unfold(0, window, 1).mean(1)
            assert torch.allclose(y[window - 1 :, channel], cubic[0, window - 1 :, 0] - mean)
    assert not list(layer.parameters())


def test_laws_of_a_short_line_and_scan_mode() -> None:
    torch.manual_seed(0)
    check_mixer(Companion(4, 1, mode="scan"), 4, laws=[1, 2, 3], verbose=False)


def test_another_state_is_refused() -> None:
    layer = Companion(4, 3)
    with pytest.raises(ValueError, match="CompanionState"):
        layer.step(torch.zeros(1, 4), Shift(4, 3).init_state(1))
    with pytest.raises(ValueError, match="no notion of elapsed time"):
        layer(torch.zeros(1, 5, 4), Timeline(interval=2.0))
