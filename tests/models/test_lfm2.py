"""LFM2: what its convolutions can see, and how its files say the width of the MLP."""

from __future__ import annotations

import pytest
import torch

from statescan.interop.dialects import read_transformers
from statescan.interop.dialects.anatomy import lost
from statescan.registry import models
from statescan.testing.run import stir


@pytest.mark.parametrize("depth", [1, 3])
def test_convolutions_alone_see_two_positions_a_layer(depth: int) -> None:
    torch.manual_seed(0)
    model = models["lfm2-tiny"].spec.override({"layers": f"(CF)*{depth}"})().double().eval()
    stir(model)
    x = torch.randn(1, 12, 24, dtype=torch.float64, requires_grad=True)
    backbone = model.backbone
    del backbone.embedding  # without it the input is the stream
    backbone(x)[0, -1].sum().backward()
    assert x.grad is not None
    seen = x.grad[0].abs().amax(-1) > 0
    assert seen.tolist() == [False] * (11 - 2 * depth) + [True] * (1 + 2 * depth)


def test_the_width_of_the_mlp_is_adjusted_as_the_files_mean_it() -> None:
    """The published files say 12288, in the names of the original project or of transformers, and mean 8192."""
    common = {"model_type": "lfm2", "hidden_size": 2048, "num_hidden_layers": 16, "full_attn_idxs": [2, 5, 8, 10, 12, 14]}
    first = {**common, "block_ff_dim": 12288, "block_dim": 2048, "conv_dim": 2048, "num_heads": 32, "rope_theta": 1e6, "use_pos_enc": True}
    for config in ({**common, "intermediate_size": 12288}, first):
        spec, _ = read_transformers(config, "config.json")
        assert lost(models["lfm2-1.2b"].spec.resolved(), spec) == []


def test_an_option_that_changes_the_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="block_use_swiglu"):
        read_transformers({"model_type": "lfm2", "block_use_swiglu": False}, "config.json")
