"""S4's classifiers: the counted formula of a block, norms before and behind, dropout of what a layer adds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from statescan import Spec, create_model
from statescan.blocks import AddNorm, Residual
from statescan.layers.norm import BatchNorm, LayerNorm
from statescan.mixers import S4, TwoSided
from statescan.models.s4 import NormBehind


@pytest.mark.parametrize(("copies", "two_sided", "count"), [(None, False, 197_632), (1, False, 148_672), (None, True, 214_016)])
def test_a_block_has_as_many_parameters_as_counted(copies: int | None, two_sided: bool, count: int) -> None:
    with torch.device("meta"):
        layer = TwoSided(256, Spec(S4, n_ssm=copies)) if two_sided else S4(256, n_ssm=copies)
    d, n, s = 256, 64, copies or 256
    assert 2 * d + (1 + two_sided) * d * n + 3 * s * n + 2 * d**2 + 2 * d == count
    assert sum(parameter.numel() for parameter in layer.parameters()) == count


@pytest.mark.parametrize(("name", "norm", "first"), [
    ("listops", BatchNorm, False), ("imdb", BatchNorm, True), ("image", BatchNorm, False), ("pathfinder", BatchNorm, True),
    ("pathx", BatchNorm, True), ("cifar", LayerNorm, False), ("speech", BatchNorm, True),
])  # fmt: skip
def test_norms_stand_where_the_configurations_have_them(name: str, norm: type[nn.Module], first: bool) -> None:
    backbone = create_model(f"s4-{name}", device="meta").backbone
    assert len(backbone.layers) == 6
    for block in backbone.layers:
        assert type(block) is (Residual if first else NormBehind)
        assert type(block.norm) is norm
        assert block.dropout == block.mixer.ahead.dropout == (0.1 if name in ("image", "cifar") else 0)
    assert type(backbone.norm_f) is (norm if first else nn.Identity)


def test_a_norm_behind_sees_the_stream_and_what_is_left_of_the_layer() -> None:
    torch.manual_seed(0)
    block = NormBehind(6, Spec(S4, d_state=4), dropout=0.5).double()
    assert isinstance(block, AddNorm)
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    added = block.mixer(x)
    torch.testing.assert_close(block.eval()(x)[0], block.norm(x + added))
    torch.manual_seed(1)
    y = block.train()(x)[0]
    torch.manual_seed(1)
    kept = nn.functional.dropout(torch.ones_like(x), 0.5)
    torch.testing.assert_close(y, block.norm(x + kept * added))
    assert (kept == 0).any()


def test_a_classifier_sees_both_ways_and_learns() -> None:
    torch.manual_seed(0)
    model = create_model("s4-speech", d_model=8, layers="SS").eval()
    x = torch.randn(2, 9, 1)
    changed = x.clone()
    changed[:, -1] += 1
    features = model.backbone(model.encoder(x))
    assert not torch.allclose(features[:, 0], model.backbone(model.encoder(changed))[:, 0], atol=1e-6)
    model.train().loss(model(x), torch.tensor([3, 4])).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_weights_load_as_a_file_gives_them() -> None:
    """Without the versions that torch keeps beside a state dict; a batch norm takes weights without them for older ones."""
    norm, other = BatchNorm(3), BatchNorm(3)
    norm(torch.randn(2, 5, 3))
    other.load_state_dict(dict(norm.state_dict()))
    assert torch.equal(other.running_mean, norm.running_mean)  # type: ignore[arg-type]
