"""Falcon-H1, Jamba and Nemotron-H: what the publications say of their layers, and what their files may say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import statescan as ss
from statescan.interop.config import Reader
from statescan.interop.dialects import DIALECTS, read_transformers, write_transformers
from statescan.interop.dialects.falcon import _key
from statescan.mixers.attention import AttentionState
from statescan.mixers.mamba2 import Mamba2State
from statescan.registry import models
from statescan.testing.run import stir

IDS = torch.arange(11)[None] * 7 % 61


def noisy(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    model = ss.create_model(name, **changes).eval()
    torch.manual_seed(1)
    stir(model)
    return model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS)


@pytest.mark.parametrize(("silent", "left"), [("self_attn.o_proj", "mamba"), ("mamba.out_proj", "self_attn")])
def test_falcon_h1_without_one_side_is_the_other(silent: str, left: str) -> None:
    """With a zero output, the block is Mamba-2 or grouped-query attention alone, between its multipliers."""
    model = noisy("falcon-h1-tiny")
    layer = model.backbone.layers[0]
    with torch.no_grad():
        layer.mixer.get_submodule(silent).weight.zero_()
        x = torch.randn(2, 9, 24)
        i = layer.mixer.names.index(left)
        alone = layer.mixer.get_submodule(left)(x * layer.mixer.inputs[i]) * layer.mixer.outputs[i]
        torch.testing.assert_close(layer.mixer(x), alone, atol=1e-6, rtol=0)


def test_falcon_h1_holds_both_states_in_a_layer() -> None:
    _, state = noisy("falcon-h1-tiny").scan(IDS)
    recurrent, cache = state.layers[0].parts
    assert isinstance(recurrent, Mamba2State)
    assert isinstance(cache, AttentionState)
    assert state.layers[1] == ()


@pytest.mark.parametrize(
    "change",
    [
        {"embedding_scale": 1.0}, {"logit_scale": 1.0}, {"parts.P.inputs": None}, {"parts.P.outputs": None},
        {"parts.F.multipliers": (1.0, 1.0)}, {"parts.P.parts.mamba.multipliers": None}, {"parts.P.parts.self_attn.scale": None},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_every_multiplier_of_falcon_h1_counts(change: dict[str, Any]) -> None:
    assert float((logits(noisy("falcon-h1-tiny")) - logits(noisy("falcon-h1-tiny", **change))).abs().max()) > 1e-3


@pytest.mark.parametrize("size", [3, 64, 80, 128])
def test_the_multiplier_of_the_keys_comes_back(size: int) -> None:
    for number in (0.39, 0.390625, 1.7, 1e-3, 0.7071067811865476):
        found = _key(number * size**-0.5, size)
        assert found * size**-0.5 == number * size**-0.5
        assert found == pytest.approx(number, rel=1e-15)
    assert _key(0.39 * size**-0.5, size) == 0.39


def test_falcon_h1_with_one_bias_only_is_refused() -> None:
    config = {"model_type": "falcon_h1", "hidden_size": 16, "num_hidden_layers": 1, "mamba_n_heads": 4, "mamba_d_ssm": 16}
    with pytest.raises(ValueError, match="projectors_bias must be mamba_proj_bias, which is False"):
        read_transformers({**config, "projectors_bias": True}, "config.json")
    with pytest.raises(ValueError, match="partial_rotary_factor must be 1"):
        read_transformers({**config, "partial_rotary_factor": 0.5}, "config.json")


def test_jamba_attends_once_in_eight_layers_and_mixes_every_second_one() -> None:
    spec = DIALECTS["jamba"].read(Reader({"hidden_size": 4096, "num_hidden_layers": 32}, "config.json")).resolved()
    published = models["jamba-v0.1"].spec.resolved()
    assert [i for i, kind in enumerate(spec.arguments["layers"][::2]) if kind == "A"] == [4, 12, 20, 28]
    assert [i for i, kind in enumerate(spec.arguments["layers"][1::2]) if kind == "E"] == list(range(1, 32, 2))
    assert spec.arguments["layers"] == published.arguments["layers"].replace("(", "").replace(")*4", "") * 4
    assert spec.arguments["parts"]["E"] == published.arguments["parts"]["E"]


def test_jamba_without_its_inner_norms_is_mamba() -> None:
    normed, plain = (
        noisy("jamba-tiny").backbone.layers[0].mixer,
        noisy("jamba-tiny", **{"parts.M.bcdt_norm": "none"}).backbone.layers[0].mixer,
    )
    x = torch.randn(2, 9, 24)
    missing = plain.load_state_dict(normed.state_dict(), strict=False)
    assert missing.unexpected_keys == ["dt_layernorm.weight", "b_layernorm.weight", "c_layernorm.weight"]
    mamba = ss.Mamba(24, d_state=5)
    mamba.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert torch.equal(plain(x), mamba(x))
        assert float((plain(x) - normed(x)).abs().max()) > 1e-3


def test_attention_at_odd_places_is_not_jamba() -> None:
    with pytest.raises(ValueError, match=r"its layers \[0, 1, 3\] of 4 are not evenly spaced"):
        write_transformers(ss.create_model("jamba-tiny", layers="AFAFMFAF"))


def test_nemotron_h_is_read_from_a_pattern_as_from_a_list() -> None:
    words = ["linear_attention", "mlp", "full_attention", "moe"]
    sizes = {"model_type": "nemotron_h", "hidden_size": 16, "mamba_num_heads": 8, "mamba_head_dim": 8}
    listed, _ = read_transformers({**sizes, "layers_block_type": words}, "config.json")
    spelled, _ = read_transformers({**sizes, "hybrid_override_pattern": "M-*E", "num_hidden_layers": 4}, "config.json")
    assert listed == spelled
    assert listed.arguments["layers"] == "MFAE"
    with pytest.raises(ValueError, match="layers_block_type must list"):
        read_transformers({**sizes, "hybrid_override_pattern": "M-x"}, "config.json")
    with pytest.raises(ValueError, match="num_nextn_predict_layers must be 0"):
        read_transformers({**sizes, "layers_block_type": words, "num_nextn_predict_layers": 1}, "config.json")


def test_nemotron_h_8b_has_the_published_layers() -> None:
    names = [type(layer.mixer).__name__ for layer in ss.create_model("nemotron-h-8b", device="meta").backbone.layers]
    assert [names.count(name) for name in ("Mamba2", "MLP", "Attention")] == [24, 24, 4]
    assert [i for i, name in enumerate(names) if name == "Attention"] == [7, 18, 29, 40]


def test_nemotron_h_gates_before_it_normalises() -> None:
    swapped = noisy("nemotron-h-tiny", **{"parts.M.norm_before_gate": True})
    assert float((logits(noisy("nemotron-h-tiny")) - logits(swapped)).abs().max()) > 1e-3


def test_a_falcon_mamba_file_may_give_the_width_rather_than_expand() -> None:
    config = {"model_type": "falcon_mamba", "hidden_size": 24, "num_hidden_layers": 1, "vocab_size": 61, "expand": 16}
    spec, _ = read_transformers({**config, "intermediate_size": 72}, "config.json")
    assert spec.arguments["parts"]["M"].arguments["expand"] == 3
