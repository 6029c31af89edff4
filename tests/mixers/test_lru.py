"""Linear recurrent units: the published initial values, an explicit convolution, the released block."""

from __future__ import annotations

import pytest
import torch

from statescan.mixers.lru import LRU, RGLRU, RealGatedUnit, bounded_root


def test_lru_is_a_convolution() -> None:
    layer = LRU(3, 4, r_min=0.4, r_max=0.9).double()
    x = torch.randn(2, 17, 3, dtype=torch.float64)
    eigenvalues = torch.exp(torch.complex(-layer.nu_log.exp(), layer.theta_log.exp()))
    b = torch.complex(layer.B_re, layer.B_im) * layer.gamma_log.exp().unsqueeze(1)
    kernel = [(torch.complex(layer.C_re, layer.C_im) * eigenvalues**k @ b).real for k in range(17)]
    expected = torch.stack([sum(x[:, t - k] @ kernel[k].T for k in range(t + 1)) + layer.D * x[:, t] for t in range(17)], 1)
    torch.testing.assert_close(layer(x), expected, atol=1e-12, rtol=0)


def test_initial_eigenvalues_lie_in_the_ring_and_their_noise_has_unit_variance() -> None:
    layer = LRU(4, 2000, r_min=0.5, r_max=0.8, max_phase=0.3).requires_grad_(False)
    radius, phase = (-layer.nu_log.exp()).exp(), layer.theta_log.exp()
    assert 0.5 <= radius.min() < 0.52
    assert 0.78 < radius.max() <= 0.8
    assert 0.29 < phase.max() <= 0.3
    torch.testing.assert_close(layer.gamma_log.exp() ** 2, 1 - radius**2)
    assert abs(float((radius**2).mean()) - (0.25 + 0.64) / 2) < 0.01


def test_lru_counts() -> None:
    assert sum(p.numel() for p in LRU(10, 6).parameters()) == 3 * 6 + 4 * 6 * 10 + 10


def test_gates_that_are_open_give_the_parameter_as_decay() -> None:
    unit = RealGatedUnit(8, 2).double()
    for bias in (unit.recurrent_gate_bias, unit.input_gate_bias):
        torch.nn.init.constant_(bias, 100.0)
    x = torch.randn(1, 5, 8, dtype=torch.float64)
    decay, driven = unit(x, torch.arange(5).unsqueeze(0) == 0)
    radius = (-torch.nn.functional.softplus(unit.recurrent_param)).exp()
    assert radius.min() > 0.9
    assert radius.max() < 0.999
    torch.testing.assert_close(decay, (radius**8).expand_as(decay))
    torch.testing.assert_close(driven[:, 0], x[:, 0])
    torch.testing.assert_close(driven[:, 1:], (1 - radius**16).sqrt() * x[:, 1:])


def test_the_root_is_exact_and_its_slope_bounded() -> None:
    x = torch.tensor([0.0, 1e-9, 2e-7, 3e-7, 0.25, 1.0], dtype=torch.float64, requires_grad=True)
    root = bounded_root(x)
    (slope,) = torch.autograd.grad(root.sum(), x)
    torch.testing.assert_close(root, x.sqrt(), atol=1e-15, rtol=0)
    torch.testing.assert_close(slope, (0.5 / x.detach().sqrt()).clamp(max=1000))


def test_it_equals_the_released_block() -> None:
    gemma = pytest.importorskip("transformers.models.recurrent_gemma.modeling_recurrent_gemma")
    config = gemma.RecurrentGemmaConfig(hidden_size=16, lru_width=24, num_attention_heads=4)
    theirs, ours = gemma.RecurrentGemmaRecurrentBlock(config, 0), RGLRU(16, 24, 4)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 11, 16)
    expected, _ = theirs(x, torch.arange(11).unsqueeze(0), None, use_cache=False)
    torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=0)


def test_published_counts() -> None:
    """RecurrentGemma 2B: 26 layers of which 18 recur, beside GeGLU layers of 7680, attention with one key head of 256, tied embedding."""
    with torch.device("meta"):
        recurrent = sum(p.numel() for p in RGLRU(2560, num_heads=10).parameters())
    attention = 2 * 2560**2 + 2 * 2560 * 256 + 2560  # of the projections only the last has a bias
    mlp = 3 * 2560 * 7680 + 2 * 7680 + 2560
    assert 18 * recurrent + 8 * attention + 26 * (mlp + 2 * 2560) + 2560 + 256_000 * 2560 == 2_682_862_080


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="num_heads must divide"):
        RGLRU(16, num_heads=3)
    with pytest.raises(ValueError, match="radii"):
        LRU(8, r_min=0.9, r_max=0.5)
