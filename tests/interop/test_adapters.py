"""Adapters on a hybrid: on every projection, on every path, in PEFT's own files, and gone without a trace once merged."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import statescan as ss
from statescan.interop.adapters import add_lora, load_adapter, lora_targets, merge_adapter, read_adapter_into, save_adapter
from statescan.spec import Spec

peft = pytest.importorskip("peft")

HYBRID = Spec(
    "LanguageModel",
    vocab_size=61,
    d_model=16,
    layers="MAF",
    parts={
        "M": Spec("Mamba2", d_state=8, headdim=8, chunk_size=16),
        "A": Spec("Attention", num_heads=2),
        "F": Spec("GatedMLP", d_ff=24),
    },
)
TARGETS = ["down_proj", "gate_proj", "in_proj", "k_proj", "o_proj", "out_proj", "q_proj", "up_proj", "v_proj"]


def make(**changes: Any) -> Any:
    torch.manual_seed(0)
    return HYBRID.override(changes)().eval()


def spoiled(adapted: Any) -> Any:
    """With adapters that are not zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2, generator=generator)
    return adapted


def ids(length: int = 11) -> torch.Tensor:
    return torch.randint(0, 61, (2, length), generator=torch.Generator().manual_seed(0))


def test_every_projection_of_a_hybrid() -> None:
    model = make()
    assert lora_targets(model) == TARGETS
    adapted = add_lora(model, rank=2)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * len(TARGETS)
    assert all(".lora_" in n for n in trained)
    some = add_lora(make(), rank=2, targets=["layers.1.mixer.q_proj", "in_proj"])
    assert sum(".lora_A" in n for n, _ in some.named_parameters()) == 2
    assert adapted.base_model.model is model


def test_names_say_no_more_than_projections() -> None:
    """An end of a path that other modules have too is not enough; a module in two places has one adapter."""
    model = make(layers="MAMA")
    model.backbone.layers[1].mixer.extra = torch.nn.Sequential(torch.nn.Linear(16, 2), torch.nn.Linear(2, 16))
    model.backbone.layers[2].mixer = model.backbone.layers[0].mixer
    assert lora_targets(model) == ["extra.0", "extra.1", "in_proj", "k_proj", "o_proj", "out_proj", "q_proj", "v_proj"]
    adapted = spoiled(add_lora(model, rank=2, alpha=4))
    assert sum(".lora_A" in n for n, _ in model.named_parameters()) == 2 + 2 * 4 + 2
    with torch.no_grad():
        expected = model(ids())
        torch.testing.assert_close(merge_adapter(adapted)(ids()), expected, atol=1e-5, rtol=0)


def test_routers_are_left_alone() -> None:
    from statescan.layers.moe import Router

    model = make(layers="M")
    model.backbone.layers[0].mixer.router = Router(16, 4)
    assert lora_targets(model) == ["in_proj", "out_proj"]


def test_states_and_generation_with_an_adapter_equal_the_merged_model() -> None:
    model, rows = make(), ids()
    plain = model(rows)
    spoiled(add_lora(model, rank=2, alpha=4))
    with torch.no_grad():
        whole, after = model.scan(rows)
        assert float((whole - plain).abs().max()) > 1e-2
        first, state = model.scan(rows[:, :4])
        rest, _ = model.scan(rows[:, 4:], state)
        torch.testing.assert_close(torch.cat([first, rest], 1), whole, atol=1e-5, rtol=0)
        step, _ = model.step(rows[:, 0], after)
        said = ss.generate(model, rows, max_new_tokens=6, do_sample=False)
    reference = make()
    merged = merge_adapter(spoiled(add_lora(reference, rank=2, alpha=4)))
    assert merged is reference
    assert {n: p.shape for n, p in merged.state_dict().items()} == {n: p.shape for n, p in make().state_dict().items()}
    with torch.no_grad():
        torch.testing.assert_close(merged(rows), whole, atol=1e-5, rtol=0)
        torch.testing.assert_close(merged.step(rows[:, 0], after)[0], step, atol=1e-5, rtol=0)
    assert torch.equal(ss.generate(merged, rows, max_new_tokens=6, do_sample=False), said)


def test_folders(tmp_path: Path) -> None:
    adapted = spoiled(add_lora(make(), rank=2))
    save_adapter(adapted, tmp_path, "somewhere")
    assert {p.name for p in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert peft.PeftConfig.from_pretrained(str(tmp_path)).base_model_name_or_path == "somewhere"
    with torch.no_grad():
        expected = adapted(ids())
        assert torch.equal(load_adapter(make(), tmp_path)(ids()), expected)
        other = add_lora(make(), rank=2)
        read_adapter_into(other, tmp_path)
        assert torch.equal(other(ids()), expected)
    for wrong in (add_lora(make(), rank=3), add_lora(make(layers="MA"), rank=2)):
        with pytest.raises(ValueError, match="belongs to another model"):
            read_adapter_into(wrong, tmp_path)


def test_what_cannot_be_adapted(monkeypatch: pytest.MonkeyPatch) -> None:
    for options, message in (
        ({"rank": 0}, "rank must be at least 1"),
        ({"dropout": 1.0}, "dropout must lie in"),
        ({"targets": ["in_porj"]}, "no projection is named 'in_porj'; did you mean 'in_proj'"),
        ({"targets": ["lm_head"]}, "lm_head shares its weight with the embedding"),
    ):
        with pytest.raises(ValueError, match=message):
            add_lora(make(), **options)
    assert add_lora(make(tie_embeddings=False), targets=["lm_head"]) is not None
    model = make()
    ss.quantize(model, "int8")
    with pytest.raises(ValueError, match="is quantised"):
        add_lora(model)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'statescan\[peft\]'"):
        add_lora(make())
