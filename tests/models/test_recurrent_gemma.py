"""RecurrentGemma: the width of the MLP that its files double, and the scale of the embedding that its checkpoints round."""

from __future__ import annotations

import pytest
import torch

from statescan.interop.dialects import read_transformers
from statescan.interop.dialects.anatomy import lost
from statescan.registry import models


@pytest.mark.parametrize(("width", "parameters"), [(7680, 1_915_891_200), (15360, 2_682_862_080)])
def test_intermediate_size_is_twice_the_width(width: int, parameters: int) -> None:
    """The default of transformers' class builds a smaller network than the published one."""
    config = {"model_type": "recurrent_gemma", "intermediate_size": width, "num_key_value_heads": 1}
    spec, _ = read_transformers(config, "config.json")
    with torch.device("meta"):
        model = spec()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert (lost(models["recurrent-gemma-2b"].spec.resolved(), spec) == []) == (width == 15360)


def test_the_embedding_is_scaled_by_a_rounded_root() -> None:
    spec, _ = read_transformers({"model_type": "recurrent_gemma"}, "config.json")
    assert spec.arguments["embedding_scale"] == 50.5 != 2560**0.5


def test_an_odd_width_and_an_unknown_block_are_refused() -> None:
    for changes, text in (({"intermediate_size": 15}, "even"), ({"block_types": ["recurrent", "mamba"]}, "block_types")):
        with pytest.raises(ValueError, match=text):
            read_transformers({"model_type": "recurrent_gemma", **changes}, "config.json")
