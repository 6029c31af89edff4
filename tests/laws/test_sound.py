"""Models of sound keep every law, whether a sample is one of the levels or a mixture over them."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from statescan.backbones import PoolUNet
from statescan.heads.sound import SoundModel
from statescan.mixers import S4D
from statescan.spec import Spec
from statescan.testing import LAWS, Report, Subject
from statescan.testing.run import model_subject, stir

MODELS: dict[str, dict[str, Any]] = {
    "levels": {"network": Spec(PoolUNet, mixer=Spec(S4D, d_state=2), n_layers=1, pool=(3,)), "levels": 19},
    "mixture": {
        "network": Spec(PoolUNet, mixer=Spec(S4D, d_state=2), n_layers=1, pool=(2,), unet=True),
        "levels": 300,
        "coding": "linear",
        "components": 2,
    },
}


@functools.cache
def subject(name: str) -> Subject:
    torch.manual_seed(0)
    return model_subject(stir(SoundModel(8, **MODELS[name])))


@functools.cache
def modes(name: str) -> Any:
    return subject(name).modes()


EACH_TIME = (("mixture", 2), ("mixture", 3))
CASES = [(name, law) for name in MODELS for law in sorted(LAWS)]


@pytest.mark.parametrize(("name", "law"), [pytest.param(*case, marks=() if case in EACH_TIME else pytest.mark.full) for case in CASES])
def test_law(name: str, law: int) -> None:
    report = Report(name)
    LAWS[law](subject(name), report, *modes(name))
    report.raise_if_failed()
