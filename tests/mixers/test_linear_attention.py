"""GLA, RetNet and HGRN2: published counts, gates, and what they have in common."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from statescan.mixers import GLA, HGRN2, RetNet
from statescan.ops.dispatch import implementation


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("width", "hidden", "layer"), [(1024, 2816, 12_872_448), (2048, 5632, 51_435_008)])
def test_gla_has_the_published_count(width: int, hidden: int, layer: int) -> None:
    with torch.device("meta"):
        assert count(GLA(width)) + 2 * width + 3 * width * hidden == layer  # two norms and a SwiGLU


def test_hgrn2_counts() -> None:
    with torch.device("meta"):
        assert count(HGRN2(2048)) == 4 * 2048**2 + 2048


@pytest.mark.parametrize("bound", [0.0, 0.4])
def test_hgrn2_keeps_a_weighted_mean_of_values(bound: float) -> None:
    layer, x = HGRN2(16, expand_ratio=4, lower_bound=bound).double(), 3 * torch.randn(2, 90, 16, dtype=torch.float64)
    _, state = layer.scan(x)
    values = layer.i_proj(x).unflatten(-1, (4, 4))
    assert (state.s.abs() <= values.abs().amax(1).unsqueeze(-2) + 1e-12).all()


def test_hgrn2_forgets_no_faster_than_its_bound() -> None:
    layer = HGRN2(8, expand_ratio=4, lower_bound=0.5).double()
    nn.init.zeros_(layer.i_proj.weight)
    start = layer.init_state(1)._replace(s=torch.ones(1, 2, 4, 4, dtype=torch.float64))
    _, state = layer.scan(50 * torch.randn(1, 10, 8, dtype=torch.float64), start)
    assert (state.s >= 0.5**10 - 1e-15).all()


def test_gla_survives_strong_decay_in_single_precision() -> None:
    layer = GLA(32, num_heads=2, gate_logit_normalizer=1.0)
    nn.init.constant_(layer.gk_proj[1].bias, -math.log(math.e**5 - 1))  # type: ignore[arg-type]  # decays near exp(-5)
    x = torch.randn(1, 256, 32)
    with torch.no_grad():
        got = layer(x)
        with implementation("reference"):
            expected = layer.double()(x.double())
    torch.testing.assert_close(got.double(), expected, atol=1e-4, rtol=1e-4)


def test_retnet_is_its_parallel_form() -> None:
    """Products of rotated queries and keys know distances only, and decay with them."""
    layer, x = RetNet(16, num_heads=2, expand_k=0.25, rotary_base=100.0).double(), torch.randn(1, 70, 16, dtype=torch.float64)
    q, k, v = (proj(x)[0].unflatten(-1, (2, -1)).transpose(0, 1) for proj in (layer.q_proj, layer.k_proj, layer.v_proj))
    t = torch.arange(70, dtype=torch.float64)
    distance = t.unsqueeze(1) - t
    decay = torch.stack([(1 - 2.0**power) ** distance for power in (-5, -6)]).tril()
    cross = q[..., 0].unsqueeze(-1) * k[..., 1].unsqueeze(-2) - q[..., 1].unsqueeze(-1) * k[..., 0].unsqueeze(-2)
    scores = ((q @ k.mT) * distance.cos() + cross * distance.sin()) * decay / 2**0.5
    y = layer.g_norm_swish_gate((scores @ v).transpose(0, 1)).flatten(-2)
    torch.testing.assert_close(layer(x)[0], layer.o_proj(y * torch.nn.functional.silu(layer.g_proj(x)[0])), atol=1e-10, rtol=1e-10)


def test_retnet_counts_and_refusals() -> None:
    with torch.device("meta"):
        assert count(RetNet(1024)) == 8 * 1024**2 + 256
    with pytest.raises(ValueError, match="must be even to rotate; got 3"):
        RetNet(12, num_heads=4)
