"""Counts against a sum by hand."""

from __future__ import annotations

import pytest
import torch

import statescan as ss
from statescan.analysis import cost
from statescan.analysis.cost import OPS


def test_mamba_by_hand() -> None:
    d, e, n, k, r = 32, 64, 8, 4, 2
    projections = d * 2 * e + e * (r + 2 * n) + r * e + e * d
    layer = 2 * projections + 2 * e * k + 6 * e * n + 2 * e
    assert cost(ss.Mamba(d, d_state=n), width=d).flops == layer
    model = cost(ss.create_model("mamba-tiny"))
    assert model.flops == 2 * layer + 2 * d * 61
    assert model.state_bytes == 2 * 4 * (e * n + (k - 1) * e)
    assert "a token" in str(model)


def test_mamba2_by_hand() -> None:
    d, e, n, k, p = 32, 64, 16, 4, 8
    h = e // p
    projections = d * (2 * e + 2 * n + h) + e * d
    layer = 2 * projections + 2 * (e + 2 * n) * k + 5 * e * n + 2 * e
    assert cost(ss.Mamba2(d, d_state=n, headdim=p), width=d).flops == layer


def test_a_large_model_takes_no_memory() -> None:
    big = ss.create_model("mamba-2.8b", device="meta")
    found = cost(big, length=8)
    assert found.parameters == 2_768_345_600
    assert 2 * found.parameters * 0.99 < found.flops < 2 * found.parameters * 1.02


def test_the_model_is_left_alone() -> None:
    model = ss.create_model("mamba-tiny")
    before = model.backbone.layers[0].mixer.A_log
    cost(model)
    assert model.backbone.layers[0].mixer.A_log is before
    assert before.device.type == "cpu"
    assert model(torch.zeros(1, 3, dtype=torch.long)).isfinite().all()


@pytest.mark.parametrize("name", ["mesanet-tiny", "seqboat-tiny", "granite-4-h-test", "kimi-linear-tiny", "gla-tiny", "xlstm-tiny"])
def test_no_layer_looks_at_values(name: str) -> None:
    """On the meta device there are none: not to choose an expert, to stop an iteration or to count what is active."""
    assert cost(ss.create_model(name), length=8).flops > 1000


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in ss.list_models(tiny=True) if name not in ss.list_models()])
def test_every_model_of_tokens_or_images_has_a_cost(name: str) -> None:
    model = ss.create_model(name)
    if isinstance(getattr(model, "vocab_size", None), int) or hasattr(model, "num_classes"):
        assert cost(model, length=8).flops > 0


def test_experts_cost_what_a_token_chooses() -> None:
    """Two of six experts, and the router."""
    layer = ss.MoE(16, num_experts=6, top_k=2, d_ff=8)
    assert cost(layer, width=16).flops == 2 * 16 * 6 + 2 * (2 * 16 * 16 + 2 * 8 * 16)


def test_unknown_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="give the width"):
        cost(torch.nn.Linear(2, 2))


def test_a_scan_that_multiplies_its_steps_counts_the_product() -> None:
    arguments = {"x": torch.empty(2, 8, 6), "A": torch.empty(6, 4), "D": None, "delta_weight": None}
    product = OPS["selective_scan"](arguments | {"delta_weight": torch.empty(6, 3)}) - OPS["selective_scan"](arguments)
    assert product == 2 * 2 * 8 * 6 * 3
