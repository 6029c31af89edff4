"""H3: the layer written out in numbers, its state passed on, its counts and rates."""

from __future__ import annotations

import pytest
import torch

from statescan.mixers import H3, H3Conv
from statescan.mixers.shift import shift_taps
from statescan.parameters import parameter_groups
from statescan.timeline import Timeline


@pytest.mark.parametrize("heads", [None, 3, 1])
def test_it_is_two_convolutions_and_two_products(heads: int | None) -> None:
    torch.manual_seed(0)
    layer = H3(6, heads, d_state=4, d_shift=5).double()
    with torch.no_grad():
        layer.shift.b.add_(0.1 * torch.randn(6, 5, dtype=torch.float64))
    heads, length = heads or 6, 13
    x = torch.randn(2, length, 6, dtype=torch.float64)
    q, k, v = layer.q_proj(x), layer.k_proj(x), layer.v_proj(x)
    taps = shift_taps(layer.shift.b, layer.shift.c)
    shifted = layer.shift.D * k
    for lag in range(5):
        shifted[:, lag:] += taps[:, lag] * k[:, : length - lag]
    kernel = layer.ssm.kernel(length)
    size = 6 // heads
    o = torch.zeros_like(x)
    for h in range(heads):
        for i in range(size):
            for j in range(size):
                product = shifted[..., h * size + i] * v[..., h * size + j]
                memory = layer.ssm.D[h] * product
                for lag in range(length):
                    memory[:, lag:] = memory[:, lag:] + kernel[h, lag] * product[:, : length - lag]
                o[..., h * size + j] = o[..., h * size + j] + q[..., h * size + i] * memory
    torch.testing.assert_close(layer(x), layer.out_proj(o), atol=1e-13, rtol=0)


def test_with_the_first_unit_vector_the_shift_has_the_taps_themselves() -> None:
    layer = H3(4, d_state=4, d_shift=5)
    torch.testing.assert_close(shift_taps(layer.shift.b, layer.shift.c), layer.shift.c)


def test_state_passing_equals_the_whole() -> None:
    torch.manual_seed(0)
    layer = H3(6, 3, d_state=8, d_shift=5).double()
    x = torch.randn(2, 64, 6, dtype=torch.float64)
    state, parts = layer.init_state(2), []
    for chunk in x.split(16, 1):
        y, state = layer.scan(chunk, state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), layer(x), atol=1e-14, rtol=0)


def test_counts() -> None:
    with torch.device("meta"):
        layer = H3(768)
    assert sum(p.numel() for p in layer.parameters()) == 2_610_432
    assert layer.init_state(1, device="meta").ssm.shape == (1, 1, 768, 32, 2)


def test_its_systems_learn_slowly() -> None:
    layer = H3(4, d_state=4, d_shift=3)
    names = {id(p): n for n, p in layer.named_parameters()}
    groups = parameter_groups(layer, lr=6e-3)
    slow = {names[id(p)].partition(".")[0] for g in groups if g["lr"] == 1e-3 for p in g["params"]}
    assert slow == {"shift", "ssm"}
    assert all(g["weight_decay"] == 0 for g in groups if g["lr"] == 1e-3)


def test_errors() -> None:
    with pytest.raises(ValueError, match="num_heads must divide"):
        H3(4, 3)
    with pytest.raises(ValueError, match="expected an H3State"):
        H3(4, d_state=4, d_shift=3)(torch.randn(1, 2, 4), state=(torch.zeros(1),))
    with pytest.raises(ValueError, match="no notion of elapsed time"):
        H3(4, d_state=4, d_shift=3)(torch.randn(1, 2, 4), Timeline(interval=2.0))


@pytest.mark.parametrize("heads", [None, 3, 1])
def test_h3_conv_is_two_long_convolutions_and_two_products(heads: int | None) -> None:
    torch.manual_seed(0)
    layer = H3Conv(6, heads, 5, lam=0.001).double().eval()
    heads, length = heads or 6, 13
    size = 6 // heads
    x = torch.randn(2, length, 6, dtype=torch.float64)
    q, k, v = layer.q_proj(x), layer.k_proj(x), layer.v_proj(x)

    def passed(u: torch.Tensor, taps: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        y = skip * u
        for lag in range(5):
            y[:, lag:] = y[:, lag:] + taps[lag] * u[:, : length - lag]
        return y

    near, far = layer.shift.kernel(5), layer.ssm.kernel(5)
    assert (far != 0).any()
    k = torch.stack([passed(k[..., c], near[c], layer.shift.D[c]) for c in range(6)], -1)
    o = torch.zeros_like(x)
    for h in range(heads):
        for i in range(size):
            for j in range(size):
                memory = passed(k[..., h * size + i] * v[..., h * size + j], far[h], layer.ssm.D[h])
                o[..., h * size + j] = o[..., h * size + j] + q[..., h * size + i] * memory
    torch.testing.assert_close(layer(x), layer.out_proj(o), atol=1e-13, rtol=0)
    state, steps = layer.init_state(2), []
    assert state.keys.shape == (2, 4, 6)
    assert state.products.shape == (2, size**2, 4, heads)
    for t in range(length):
        y, state = layer.step(x[:, t], state)
        steps.append(y)
    torch.testing.assert_close(torch.stack(steps, 1), layer(x), atol=1e-13, rtol=0)
    # behind 2 K - 2 positions nothing is left of a state; one before that something is
    for positions in (7, 8):
        warm, cold = (layer.scan(x[:, :positions], start)[1].products for start in (state, layer.init_state(2)))
        assert bool(((warm - cold).abs() > 1e-12).any()) == (positions == 7)


def test_h3_conv_counts_and_rates() -> None:
    with torch.device("meta"):
        layer = H3Conv(768, l_max=2048)
        heads = H3Conv(768, 48, l_max=2048)
    # four projections with biases, two kernels with a skip
    assert sum(p.numel() for p in layer.parameters()) == 4 * (768**2 + 768) + 2 * 768 * 2049
    assert sum(p.numel() for p in heads.parameters()) == 4 * (768**2 + 768) + (768 + 48) * 2049
    names = {id(p): n for n, p in layer.named_parameters()}
    slow = {names[id(p)] for g in parameter_groups(layer, lr=6e-3) if g["lr"] == 1e-3 for p in g["params"]}
    assert slow == {"shift.filter.kernel", "ssm.filter.kernel"}
    with pytest.raises(ValueError, match="expected an H3ConvState"):
        H3Conv(4, l_max=3)(torch.randn(1, 2, 4), state=H3(4, d_state=4, d_shift=3).init_state(1))
    with pytest.raises(ValueError, match="a kernel of zeros gets no gradient"):
        H3Conv(4, l_max=3, lam=0.1)


def test_a_step_of_h3_is_a_chunk_of_one() -> None:
    torch.manual_seed(0)
    for layer in (H3(6, 3, d_state=4, d_shift=3), H3Conv(6, 3, 4)):
        layer = layer.double().eval()
        _, state = layer.scan(torch.randn(2, 9, 6, dtype=torch.float64))
        x = torch.randn(2, 6, dtype=torch.float64)
        line = Timeline(torch.tensor([True, False]), torch.tensor([True, False]))
        found, after = layer.step(x, state, line)
        expected, last = layer.scan(x.unsqueeze(1), state, line.as_sequence())
        torch.testing.assert_close(found, expected.squeeze(1), atol=1e-13, rtol=0)
        for a, b in zip(after, last, strict=True):
            torch.testing.assert_close(a, b, atol=1e-13, rtol=0)
