"""Granite 4: every multiplier counts, and attention without positions does not see the order of what came before."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import statescan as ss
from statescan.registry import models
from statescan.testing.run import stir

IDS = torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(0))


def logits(changes: dict[str, Any]) -> torch.Tensor:
    torch.manual_seed(0)
    model = models["granite-4-h-test"].spec.override(changes)().eval()
    torch.manual_seed(1)
    stir(model)
    with torch.no_grad():
        return model(IDS)


@pytest.mark.parametrize("name", ["embedding_scale", "residual_scale", "logit_scale", "parts.A.scale"])
def test_dropping_a_multiplier_changes_the_logits(name: str) -> None:
    assert (logits({name: 1.0}) - logits({})).abs().max() > 1e-3


def test_one_layer_without_positions_does_not_see_order() -> None:
    """Deeper causal stacks do: there the keys differ by what stood before them."""
    order = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4, 8])
    for layers, same in (("A", True), ("AA", False)):
        torch.manual_seed(0)
        model = models["granite-4-h-test"].spec.override({"layers": layers})().eval()
        stir(model)
        with torch.no_grad():
            difference = (model(IDS)[:, -1] - model(IDS[:, order])[:, -1]).abs().max()
        assert (difference < 1e-5) == same


def test_experts_are_read_where_the_file_has_them() -> None:
    tiny = ss.create_model("granite-4-h-tiny", device="meta")
    kinds = [type(layer.mixer).__name__ for layer in tiny.backbone.layers]
    assert (kinds.count("MoE"), kinds.count("Mamba2")) == (40, 36)
    assert [i // 2 for i, kind in enumerate(kinds) if kind == "Attention"] == [5, 15, 25, 35]
