"""A layer whose every projection is quantised has no float parameter to take its cache's type from."""

from __future__ import annotations

import torch

import statescan as ss
from statescan.mixers import Attention


def test_a_quantised_layer_has_a_state() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Sequential(Attention(16, num_heads=2))
    ss.quantize(layer, "int8")
    attention = layer[0]
    state = attention.init_state(2)
    assert state.keys.dtype == torch.float32
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        whole = attention(x)
        first, state = attention.scan(x[:, :3], state)
        rest, _ = attention.scan(x[:, 3:], state)
    torch.testing.assert_close(torch.cat([first, rest], 1), whole, atol=1e-5, rtol=0)
