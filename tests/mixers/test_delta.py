"""The delta family: published counts, independent implementations, state tracking, and what the options refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from statescan import Spec
from statescan.backbones import FlatBackbone
from statescan.mixers import KDA, DeltaNet, GatedDeltaNet


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def data(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def fused(layer: nn.Module, renamed: dict[str, str]) -> dict[str, Tensor]:
    """Our tensors under the names of transformers, which has one convolution for q, k and v."""
    ours = dict(layer.state_dict())
    conv = torch.cat([ours.pop(f"{name}_conv1d.weight") for name in "qkv"])
    return {renamed.get(name, name): tensor for name, tensor in ours.items()} | {"conv1d.weight": conv}


def test_kda_has_the_published_count() -> None:
    with torch.device("meta"):
        assert count(KDA(2304)) == 39_514_272


def test_gated_deltanet_is_about_six_squares() -> None:
    with torch.device("meta"):
        assert count(GatedDeltaNet(2048)) == 6 * 2048**2 + 2 * 2048 * 6 + 4 * 2 * 1536 + 4 * 3072 + 512 + 2 * 6


@pytest.mark.parametrize("negative", [False, True])
def test_gated_deltanet_equals_transformers(negative: bool) -> None:
    module: Any = pytest.importorskip("transformers.models.olmo_hybrid.modeling_olmo_hybrid")
    config: Any = pytest.importorskip("transformers").OlmoHybridConfig(
        hidden_size=24, num_hidden_layers=4, linear_num_value_heads=3, linear_num_key_heads=3, linear_key_head_dim=6,
        linear_value_head_dim=10, linear_allow_neg_eigval=negative, num_attention_heads=2,
    )  # fmt: skip
    theirs = module.OlmoHybridGatedDeltaNet(config, 0).eval()
    ours = GatedDeltaNet(24, 3, 6, expand_v=10 / 6 + 1e-9, allow_neg_eigval=negative).eval()
    theirs.load_state_dict(fused(ours, {}))
    x = data(2, 71, 24)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-4)


def test_kda_equals_transformers() -> None:
    module: Any = pytest.importorskip("transformers.models.kimi_linear.modeling_kimi_linear")
    config: Any = pytest.importorskip("transformers").KimiLinearConfig(
        hidden_size=24, num_hidden_layers=4, linear_num_heads=3, linear_head_dim=6, rms_norm_eps=1e-5
    )
    theirs = module.KimiLinearDeltaAttention(config, 0).eval()
    ours = KDA(24, 3, 6).eval()
    weights = fused(ours, {f"{n}": f"forget_gate.{n}" for n in ("f_a_proj.weight", "f_b_proj.weight", "dt_bias", "A_log")})
    weights["forget_gate.A_log"] = weights["forget_gate.A_log"].view(1, 1, -1, 1)
    theirs.load_state_dict(weights)
    x = data(2, 71, 24)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-4)


def test_negative_eigenvalues_reach_what_others_cannot() -> None:
    x = 8 * data(1, 64, 16)
    for cls in (DeltaNet, GatedDeltaNet):
        plain, negative = (cls(16, num_heads=2, allow_neg_eigval=flag).rates(x)[0] for flag in (False, True))
        assert plain.max() <= 1
        assert 1 < negative.max() <= 2


def test_they_stack_in_a_backbone() -> None:
    """Writes of the state are not writes on the bus."""
    layer = GatedDeltaNet(16, 2, 4, num_writes=2)
    assert (layer.num_writes, layer.writes, layer.reads) == (2, (), ())
    model = FlatBackbone(16, "D*2", {"D": Spec(GatedDeltaNet, num_heads=2, head_dim=4, num_writes=2)})
    assert torch.isfinite(model(data(1, 5, 16))).all()


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"expand_v \* d_model must be a multiple of the heads; got expand_v=1.0, d_model=32, 5 heads"):
        DeltaNet(32, num_heads=5, expand_k=1.25)
    with pytest.raises(ValueError, match="must divide those of the values; got 2 and 3"):
        GatedDeltaNet(32, num_heads=2, head_dim=8, num_v_heads=3)
    with pytest.raises(ValueError, match=r"lower_bound must be negative, or None; got 1\.0"):
        KDA(32, 2, 8, lower_bound=1.0)
