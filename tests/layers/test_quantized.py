"""QuantLinear: how well weights are rounded, and that it behaves as a module."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from statescan.layers import QuantLinear
from statescan.layers.quantized import Bits, encode
from statescan.ops.quantized_linear.reference import dequantize


def relative_error(weight: torch.Tensor, bits: Bits, group_size: int) -> float:
    q, scale = encode(weight, bits, group_size)
    return float((dequantize(q, scale, *weight.shape, torch.float32) - weight).norm() / weight.norm())


@pytest.mark.parametrize(
    ("bits", "group_size", "bound"), [(8, 64, 0.0065), (8, 128, 0.007), (4, 64, 0.093), (4, 128, 0.105), (4, 256, 0.115)]
)
def test_error_on_normal_weights(bits: Bits, group_size: int, bound: float) -> None:
    """The step of plain rounding in 8 bits is 2 max / 254: the bounds are a little above what normal numbers give."""
    error = relative_error(torch.randn(128, 512), bits, group_size)
    assert 0.8 * bound < error < bound


def test_four_bits_search_the_scale() -> None:
    """Better than the scale that reaches the largest weight."""
    weight = torch.randn(64, 256)
    groups = weight.unflatten(1, (-1, 64))
    scale = groups.abs().amax(-1, keepdim=True) / 7
    plain = float(((groups / scale).round().clamp(-7, 7) * scale - groups).norm() / weight.norm())
    assert relative_error(weight, 4, 64) < 0.9 * plain


@pytest.mark.parametrize("bits", [8, 4])
def test_what_can_be_exact_is(bits: Bits) -> None:
    weight = torch.randint(-7, 8, (9, 200)).float() * 0.25
    weight[:, 0::64], weight[4] = 7 * 0.25, 0.0
    assert relative_error(weight, bits, 64) < (1e-6 if bits == 4 else 0.006)
    q, scale = encode(weight, bits, 64)
    assert not dequantize(q, scale, *weight.shape, torch.float32)[4].any()


def test_rows_are_encoded_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(50, 100)
    whole = encode(weight, 4, 64)
    monkeypatch.setattr("statescan.layers.quantized._TILE", 700)
    for part, expected in zip(encode(weight, 4, 64), whole, strict=True):
        assert torch.equal(part, expected)


@pytest.mark.parametrize("bits", [8, 4])
def test_dtype_changes_leave_bytes_and_scales(bits: Bits) -> None:
    layer = QuantLinear.from_linear(nn.Linear(100, 7), bits)
    weight, scale = layer.weight.clone(), layer.scale.clone()
    for dtype in (torch.float64, torch.bfloat16, torch.float16, torch.float32):
        layer.to(dtype)
        assert layer.bias.dtype == dtype
        assert layer.scale.dtype == torch.bfloat16
        assert torch.equal(layer.weight, weight)
        assert torch.equal(layer.scale, scale)
    assert layer.double()(torch.randn(3, 100).double()).dtype == torch.float64


def test_state_dict_and_copies() -> None:
    layer, other = QuantLinear.from_linear(nn.Linear(100, 7), 4), QuantLinear(100, 7, bits=4)
    assert set(layer.state_dict()) == {"weight", "scale", "bias"}
    other.load_state_dict(layer.state_dict())
    x = torch.randn(3, 100)
    assert torch.equal(other(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    moved = QuantLinear(100, 7, bits=4).to("meta").to_empty(device="cpu")
    assert moved.scale.dtype == torch.bfloat16
    assert "bits=4, group_size=64" in repr(layer)


def test_it_takes_over_the_bias_and_learns_only_that() -> None:
    linear = nn.Linear(64, 5)
    layer = QuantLinear.from_linear(linear)
    assert layer.bias is linear.bias
    assert [name for name, _ in layer.named_parameters()] == ["bias"]


def test_wrong_sizes() -> None:
    with pytest.raises(ValueError, match="bits must be 8 or 4; got 5"):
        QuantLinear(8, 8, bits=5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="group_size must be one of 64, 128, 256; got 48"):
        QuantLinear(8, 8, group_size=48)
