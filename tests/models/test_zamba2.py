"""Zamba2's shared blocks: what its uses have in common, what is their own, and where what the block says may go."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import statescan as ss
from statescan.blocks import SharedBlockLayer
from statescan.interop import export_pretrained, from_pretrained, save_pretrained
from statescan.mixers import Mamba2
from statescan.registry import models
from statescan.spec import Spec
from statescan.testing.run import stir

IDS = torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(0))


def make(layers: str = "HMIHMI", **changes: Any) -> Any:
    mixer = Spec(Mamba2, d_state=4, headdim=8, chunk_size=8)
    shared = models["zamba2-tiny"].spec.arguments["parts"]["H"].override({"mixer": mixer, "capacity": None})
    torch.manual_seed(0)
    spec = models["zamba2-tiny"].spec.override({"layers": layers, "parts": {"M": mixer, "H": shared, "I": shared}, **changes})
    model = spec().eval()
    stir(model)
    return model


def test_layers_of_one_letter_share_the_block_and_nothing_else() -> None:
    layers = make().backbone.layers
    assert layers[0].block is layers[3].block
    assert layers[2].block is layers[5].block
    assert layers[0].block is not layers[2].block
    for name in ("output", "gate_up", "adapters", "mixer", "norm"):
        assert getattr(layers[0], name) is not getattr(layers[3], name)


def test_shared_weights_count_once_and_have_a_name_a_use() -> None:
    model = make("HH")
    names = [name for name, _ in model.named_parameters(remove_duplicate=False) if name.endswith("block.attention.q_proj.weight")]
    assert names == [f"backbone.layers.{i}.block.attention.q_proj.weight" for i in (0, 1)]
    one, block = make("H"), sum(p.numel() for p in model.backbone.layers[0].block.parameters())
    own = sum(p.numel() for p in one.backbone.layers[0].parameters()) - block
    assert sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in one.parameters()) == own


@torch.no_grad()
def test_copied_and_moved_off_the_meta_device_it_is_shared_still() -> None:
    model = make()
    with torch.device("meta"):
        empty = Spec.of(model)()
    moved = empty.to_empty(device="cpu").eval()
    moved.load_state_dict(model.state_dict())
    for other in (copy.deepcopy(model), moved):
        layers = other.backbone.layers
        assert layers[0].block is layers[3].block
        assert layers[0].block is not model.backbone.layers[0].block
        assert torch.equal(other(IDS), model(IDS))


def test_what_the_block_says_reaches_the_mixer_and_not_the_stream() -> None:
    model = make("H").double()
    layer = model.backbone.layers[0]
    x, e = torch.randn(2, 2, 5, 16, dtype=torch.float64).unbind()
    torch.nn.init.zeros_(layer.mixer.out_proj.weight)
    assert torch.equal(layer(x, bus={"embedding": e})[0], x)
    stir(layer.mixer)
    y, _ = layer(x, bus={"embedding": e})
    told, _ = layer.block(torch.cat([x, e], -1), None, None, layer.adapters, layer.gate_up)
    torch.testing.assert_close(y, x + layer.mixer(layer.norm(x + layer.output(told))))
    assert (y - layer(x, bus={"embedding": 2 * e})[0]).abs().max() > 1e-3


def test_a_layer_alone_has_no_embedding_to_read() -> None:
    with pytest.raises(ValueError, match="embedding"):
        make("H").backbone.layers[0](torch.randn(1, 3, 16))


@torch.no_grad()
def test_saved_once_and_shared_again_when_read(tmp_path: Path) -> None:
    model = make()
    save_pretrained(model, tmp_path)
    again = from_pretrained(tmp_path)
    assert again.backbone.layers[0].block is again.backbone.layers[3].block
    assert torch.equal(again(IDS), model(IDS))


@torch.no_grad()
def test_quantising_leaves_the_shared_block_and_says_so(tmp_path: Path) -> None:
    model = make()
    report = ss.quantize(model, "int8")
    assert "several places" in report.left["backbone.layers.0.block.attention.q_proj"]
    save_pretrained(model, tmp_path)
    assert torch.equal(from_pretrained(tmp_path)(IDS), model(IDS))


@torch.no_grad()
def test_the_engine_steps_as_the_model() -> None:
    model = make()
    engine = ss.Engine(model)
    ours = theirs = model.init_state(2)
    for t in range(9):
        expected, ours = model.step(IDS[:, t], ours)
        got, theirs = engine.step(IDS[:, t], theirs)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("layers", "changes", "reason"), [
    ("HHMI", {}, "no model type"), ("HMI", {"tie_embeddings": False}, "tied"),
])  # fmt: skip
def test_what_transformers_cannot_share_is_not_exported(layers: str, changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        export_pretrained(make(layers, **changes), tmp_path)


def test_a_block_is_a_part_only_with_a_causal_mixer() -> None:
    with pytest.raises(ValueError, match="causal"):
        SharedBlockLayer(16, Spec("GatedMLP", d_ff=8), num_heads=4, d_ff=8)
