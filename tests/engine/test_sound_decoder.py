"""The sound decoder equals the model's own step, also where a module is wrapped, hooked, of another type or of another precision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from statescan.backbones import PoolUNet
from statescan.engine.sound import SoundDecoder
from statescan.heads.sound import SoundModel
from statescan.layers import MLP
from statescan.mixers import S4D
from statescan.spec import Spec


class Adapted(nn.Linear):
    """As LoRA does it: the weight alone is not what the call computes."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + input.sum(-1, keepdim=True)


class Other(nn.Module):
    """A layer without a state in an MLP's place."""

    def __init__(self, mlp: MLP) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.mlp(x).sin()


def made() -> SoundModel:
    """Two pooled stages, and weights of which none is zero."""
    torch.manual_seed(0)
    model = SoundModel(6, Spec(PoolUNet, mixer=Spec(S4D, d_state=4), n_layers=1, pool=(2, 2)), levels=16, coding="linear", rate=1000)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model.eval()


def assert_same(model: SoundModel, tolerance: float = 1e-5) -> SoundDecoder:
    """Over whole blocks of both stages, from what the model says of the whole."""
    decoder, levels = SoundDecoder(model, 2), torch.randint(16, (2, 9))
    with torch.no_grad():
        expected, state = [], model.network.init_state(2)  # type: ignore[operator]
        for level in levels.T:
            h, state = model.network.step(model.embed(level), state)  # type: ignore[operator]
            expected.append(model.head(model.norm_f(h)))
    got = torch.stack([decoder.step(level) for level in levels.T])
    assert got.dtype == expected[0].dtype
    torch.testing.assert_close(got, torch.stack(expected), rtol=tolerance, atol=tolerance * float(got.abs().max()))
    return decoder


def test_a_plain_model_is_read() -> None:
    assert not assert_same(made()).called
    assert not assert_same(made().double(), 1e-12).called


CHANGES: dict[str, Callable[[nn.Module, str], object]] = {
    "hooked": lambda parent, name: getattr(parent, name).register_forward_hook(lambda module, args, output: 2 * output),
    "adapted": lambda parent, name: setattr(getattr(parent, name), "__class__", Adapted),
    "parametrised": lambda parent, name: nn.utils.parametrizations.weight_norm(getattr(parent, name)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("name", "outer"), [("down", True), ("up", False)])
def test_the_linear_maps_of_a_pooled_stage_that_are_not_plain_are_called(name: str, outer: bool, change: str) -> None:
    model = made()
    stage = model.network.pooled
    CHANGES[change](stage if outer else stage.inner.pooled, name)
    assert assert_same(model).called == ["Pooled"]


@pytest.mark.parametrize("change", CHANGES)
def test_projections_of_a_layer_that_are_not_plain_are_called(change: str) -> None:
    model = made()
    blocks = [*model.network.down, *model.network.pooled.inner.up]
    for mixer in (block.mixer for block in blocks):
        for name in ("up_proj", "down_proj") if isinstance(mixer, MLP) else ("out_proj",):
            CHANGES[change](mixer, name)
    assert_same(model)


def test_a_replaced_layer_is_called() -> None:
    model = made()
    for block in (*model.network.down, *model.network.pooled.inner.up):
        if isinstance(block.mixer, MLP):
            block.mixer = Other(block.mixer)
    assert set(assert_same(model).called) == {"Residual"}


def test_low_precision_is_that_of_the_model() -> None:
    model = made().bfloat16()
    assert assert_same(model, 1e-6).called == ["PoolUNet"]
