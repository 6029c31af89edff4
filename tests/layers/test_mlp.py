"""Feed-forward layers against their formulas and the released ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from statescan.layers import MLP, GatedMLP
from statescan.layers.mlp import Activation, activate


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu2"])
def test_activations(activation: Activation) -> None:
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)
    expected = {
        "silu": x / (1 + (-x).exp()),
        "gelu": x * (1 + torch.erf(x / 2**0.5)) / 2,
        "gelu_tanh": x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2,
        "relu2": torch.where(x > 0, x * x, 0.0),
    }
    torch.testing.assert_close(activate(x, activation), expected[activation], atol=1e-14, rtol=0)


def test_the_multipliers_stand_before_the_activation_and_after_the_last_product() -> None:
    layer, x = GatedMLP(6, 10, bias=True, multipliers=(0.3, 1.7)).double(), torch.randn(2, 3, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), 1.7 * layer.down_proj(layer.up_proj(x) * F.silu(0.3 * layer.gate_proj(x))))
    plain = MLP(6, 10).double()
    torch.testing.assert_close(plain(x), plain.down_proj(torch.relu(plain.up_proj(x)).square()))


def test_counts() -> None:
    with torch.device("meta"):
        layers = {2 * 16 * 40: MLP(16, 40), 3 * 16 * 40: GatedMLP(16, 40), 3 * 16 * 40 + 2 * 40 + 16: GatedMLP(16, 40, bias=True)}
    assert [sum(p.numel() for p in layer.parameters()) for layer in layers.values()] == list(layers)


def test_it_equals_the_released_layers() -> None:
    """Falcon-H1's SwiGLU with its multipliers; RecurrentGemma's GeGLU, whose config counts both branches in its width."""
    falcon = pytest.importorskip("transformers.models.falcon_h1.modeling_falcon_h1")
    gemma = pytest.importorskip("transformers.models.recurrent_gemma.modeling_recurrent_gemma")
    config = falcon.FalconH1Config(hidden_size=16, intermediate_size=24, mlp_multipliers=[0.4, 1.3])
    pairs = [
        (falcon.FalconH1MLP(config), GatedMLP(16, 24, multipliers=(0.4, 1.3))),
        (
            gemma.RecurrentGemmaMlp(gemma.RecurrentGemmaConfig(hidden_size=16, intermediate_size=48)),
            GatedMLP(16, 24, "gelu_tanh", bias=True),
        ),
    ]
    for theirs, ours in pairs:
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(2, 5, 16)
        torch.testing.assert_close(ours(x), theirs(x))


def test_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match="d_ff must be positive"):
        GatedMLP(8, 0)
