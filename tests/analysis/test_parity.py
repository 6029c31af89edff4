"""The tool must name the module that is wrong, and be silent about a model that is right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import statescan as ss
from statescan.analysis import parity
from statescan.mixers import Mamba, MambaState


class ForgetsTail(Mamba):
    """Loses the convolution's tail between chunks: the classical cache bug."""

    def forward(self, x: Tensor, timeline: Any = None, *, state: Any = None, return_state: bool = False, bus: Any = None) -> Any:
        state = None if state is None else MambaState(torch.zeros_like(state.conv), state.ssm)
        return super().forward(x, timeline, state=state, return_state=return_state, bus=bus)


def test_a_right_model_is_called_right() -> None:
    found = parity("mamba-tiny")
    assert found.ok
    assert found.first is None
    assert found.compared == ["backbone.layers.0.mixer", "backbone.layers.1.mixer"]
    assert "whole == chunks == steps == apart" in str(found)


def test_the_first_wrong_module_is_named() -> None:
    model = ss.create_model("mamba-tiny")
    model.backbone.layers[1].mixer = ForgetsTail(32, d_state=8)
    found = parity(model)
    assert not found.ok
    assert found.first is not None
    assert found.first.module == "backbone.layers.1.mixer"
    assert found.first.path == "chunks"
    assert found.first.first_time == 4  # the chunks are 4, 1, 8: the first position of the second one
    assert found.first.errors["float64"] > 1e-4
    assert "state.ssm" in found.first.fields
    assert set(found.first.implementations["whole"]) == {"causal_conv1d", "selective_scan"}
    assert "law 1" in str(found.laws)
    assert "first module that differs: backbone.layers.1.mixer: chunks" in str(found)


def test_unknown_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="its inputs are unknown"):
        parity(torch.nn.Linear(2, 2))
