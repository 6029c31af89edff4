"""Stems, downsampling and stochastic depth."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from statescan.layers.vision import MLP, ConvDownsample, ConvStem, DepthwiseConv2d, DropPath, PatchMerge, PatchStem, init_linears


def test_depthwise_convolution_looks_at_one_channel_and_keeps_the_size() -> None:
    layer, x = DepthwiseConv2d(4, 5), torch.randn(2, 3, 7, 4)
    y = layer(x)
    assert y.shape == x.shape
    for d in range(4):
        alone = F.conv2d(x[..., d].unsqueeze(1), layer.weight[d : d + 1], layer.bias[d : d + 1], padding=2)  # type: ignore[index]
        assert torch.allclose(y[..., d], alone.squeeze(1), atol=1e-6)
    with pytest.raises(ValueError, match="must be odd"):
        DepthwiseConv2d(4, 4)


@pytest.mark.parametrize("size", [(8, 12), (9, 14), (1, 1), (3, 5)])
@pytest.mark.parametrize("kind", [PatchStem, ConvStem])
def test_stems_take_any_size(kind: type[nn.Module], size: tuple[int, int]) -> None:
    stem = kind(3, 8)
    assert stem(torch.randn(2, 3, *size)).shape == (2, -(-size[0] // 4), -(-size[1] // 4), 8)


@pytest.mark.parametrize("kind", [PatchMerge, ConvDownsample])
def test_downsampling_takes_any_size(kind: type[nn.Module]) -> None:
    down = kind(4, 6)
    for size in ((4, 6), (5, 3), (1, 1), (2, 1)):
        assert down(torch.randn(2, *size, 4)).shape == (2, -(-size[0] // 2), -(-size[1] // 2), 6)


def test_a_patch_stem_pads_with_zeros_on_the_right_and_below() -> None:
    stem, x = PatchStem(3, 8), torch.randn(1, 3, 6, 9)
    padded = torch.zeros(1, 3, 8, 12)
    padded[..., :6, :9] = x
    assert torch.equal(stem(x), stem(padded))


def test_patch_merge_order() -> None:
    down = PatchMerge(1, 4)
    down.norm = nn.Identity()  # type: ignore[assignment]
    with torch.no_grad():
        down.reduction.weight.copy_(torch.eye(4))
    x = torch.arange(1.0, 7.0).view(1, 2, 3, 1)  # 1 2 3 / 4 5 6
    assert torch.equal(down(x), torch.tensor([[[[1.0, 4, 2, 5], [3, 6, 0, 0]]]]))


def test_drop_path_drops_whole_rows_in_training_only() -> None:
    torch.manual_seed(0)
    layer, x = DropPath(0.25), torch.ones(4000, 2, 3)
    y = layer(x)
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert torch.equal(y, y[:, :1, :1].expand_as(y))
    assert abs(y.mean() - 1) < 0.05
    assert layer.eval()(x) is x
    assert DropPath(0.0)(x) is x
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        DropPath(1.0)


def test_mlp_and_the_start_of_linears() -> None:
    layer, x = MLP(64, 4.0), torch.randn(2, 64)
    init_linears(layer)
    assert torch.allclose(layer(x), F.linear(F.gelu(F.linear(x, layer.fc1.weight)), layer.fc2.weight))
    assert 0.019 < layer.fc1.weight.std() < 0.021
    assert not layer.fc1.bias.any()
