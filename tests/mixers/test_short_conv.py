"""The gated short convolution against the released layer, and the length of its memory."""

from __future__ import annotations

import pytest
import torch

from statescan.mixers import GatedShortConv


@pytest.mark.parametrize("bias", [False, True])
def test_it_equals_the_released_layer(bias: bool) -> None:
    lfm2 = pytest.importorskip("transformers.models.lfm2.modeling_lfm2")
    config = lfm2.Lfm2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, conv_bias=bias, layer_types=["conv"])
    theirs, ours = lfm2.Lfm2ShortConv(config, 0).eval(), GatedShortConv(16, bias=bias).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 9, 16)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("taps", [1, 3, 4])
def test_an_input_is_seen_for_as_many_positions_as_there_are_taps(taps: int) -> None:
    layer, x = GatedShortConv(8, taps), torch.randn(1, 9, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x)[:, -1].sum(), x)
    seen = gradient.abs().sum(-1)[0] > 0
    assert seen.tolist() == [False] * (9 - taps) + [True] * taps
    assert layer.memory == taps - 1 == layer.init_state(2).conv.shape[1]


def test_published_counts() -> None:
    with torch.device("meta"):
        layer = GatedShortConv(1024)  # LFM2-350M
    assert sum(p.numel() for p in layer.parameters()) == 4 * 1024**2 + 3 * 1024
