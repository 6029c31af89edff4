"""The discretised mixture of logistics: a distribution over the levels, its gradients, and draws from it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from statescan.heads.logistic_mixture import LogisticMixture


def features(rows: int, components: int, dtype: torch.dtype = torch.float64, spread: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    raw = spread * torch.randn(rows, 3, components, generator=generator, dtype=torch.float64)
    raw[:, 1] *= 0.5
    raw[:, 2] -= 2
    return raw.flatten(1).to(dtype)


@pytest.mark.parametrize("levels", [2, 256, 65536])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-4)])
@pytest.mark.parametrize("spread", [1.0, 6.0])
def test_the_levels_share_all_of_the_probability(levels: int, dtype: torch.dtype, tolerance: float, spread: float) -> None:
    mixture = LogisticMixture.of(features(4, 3, dtype, spread), levels)
    every = torch.arange(levels).unsqueeze(1).expand(levels, 4)
    log_prob = LogisticMixture(*(t.expand(levels, *t.shape) for t in mixture)).log_prob(every, levels)
    assert log_prob.isfinite().all()
    assert (log_prob.double().exp().sum(0) - 1).abs().max() < tolerance


def test_a_level_is_a_difference_of_distribution_functions() -> None:
    raw, levels = features(5, 2), 256
    pi, mean, scale = raw[:, :2].softmax(1), raw[:, 2:4], raw[:, 4:].exp()
    level = torch.tensor([0, 1, 100, 254, 255])
    value = (2 * level.double() / 255 - 1).unsqueeze(1)
    upper, lower = torch.sigmoid((value + 1 / 255 - mean) / scale), torch.sigmoid((value - 1 / 255 - mean) / scale)
    upper[-1], lower[0] = 1, 0
    expected = (pi * (upper - lower)).sum(1).log()
    torch.testing.assert_close(LogisticMixture.of(raw, levels).log_prob(level, levels), expected, rtol=1e-9, atol=1e-9)


def test_gradients() -> None:
    level = torch.tensor([0, 3, 100, 254, 255])
    raw = features(5, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: LogisticMixture.of(f, 256).log_prob(level, 256), raw)
    single = features(5, 2, torch.float32).requires_grad_()
    wide = features(5, 2).requires_grad_()
    for f in (single, wide):
        LogisticMixture.of(f, 65536).log_prob(level * 257, 65536).sum().backward()
    assert single.grad is not None
    assert wide.grad is not None
    torch.testing.assert_close(single.grad.double(), wide.grad, rtol=2e-3, atol=2e-4)


def test_far_from_every_component_the_gradient_leads_back() -> None:
    raw = torch.tensor([[0.0, -0.9, -9.0]], requires_grad=True)
    loss = -LogisticMixture.of(raw, 65536).log_prob(torch.tensor([60000]), 65536)
    loss.sum().backward()
    assert raw.grad is not None
    assert loss.isfinite().all()
    assert raw.grad[0, 1] < 0  # a larger mean is likelier
    assert raw.grad[0, 2] < 0  # and so is a larger scale


def test_draws_are_as_frequent_as_they_are_likely() -> None:
    levels, draws = 16, 40000
    one = LogisticMixture.of(features(1, 3), levels)
    mixture = LogisticMixture(*(t.expand(draws, -1) for t in one))
    noise = torch.rand(draws, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = torch.bincount(mixture.sample(noise, levels), minlength=levels)
    p = LogisticMixture(*(t.expand(levels, -1) for t in one)).log_prob(torch.arange(levels), levels).exp()
    assert ((counts - draws * p) / (draws * p * (1 - p)).sqrt()).abs().max() < 4  # deviations of a binomial


def test_temperature() -> None:
    mixture = LogisticMixture.of(torch.tensor([[0.0, 1.0, -0.5, 0.25, -3.0, -3.0]]).double(), 256)
    expected = round((0.25 + 1) / 2 * 255)
    noise = torch.tensor([[0.01, 0.3]]).double()
    assert mixture.sample(noise, 256, 0.0).item() == expected
    rows = LogisticMixture(*(t.expand(500, -1) for t in mixture))
    many = torch.rand(500, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cold, warm = (rows.sample(many, 256, t).double().std() for t in (0.3, 1.0))
    assert cold < warm
