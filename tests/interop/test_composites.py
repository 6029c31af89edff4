"""Checkpoints of models that see too: their language model is read, what is left out is named, and it is written as one without eyes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers_cases import CASES, VOCAB

from statescan.interop import export_pretrained, from_pretrained
from statescan.interop.dialects import COMPOSITES, DIALECTS
from statescan.testing.run import stir

transformers = pytest.importorskip("transformers")

EYES = {
    "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 4, "out_hidden_size": 24,
    "num_position_embeddings": 16,
}  # fmt: skip
SIGLIP = {
    "model_type": "siglip2_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_patches": 16, "patch_size": 4,
}  # fmt: skip
RADIO = {
    "model_type": "radio", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 4, "image_size": 16,
    "max_img_size": 32, "video_temporal_patch_size": 2,
}  # fmt: skip
EARS = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "projection_hidden_size": 16,
    "projection_bias": False,
}  # fmt: skip
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_5": ("qwen3_5_text-grouped", {"vision_config": EYES}),
    "qwen3_5_moe": ("qwen3_5_moe_text", {"vision_config": EYES}),
    "lfm2_vl": ("lfm2", {"vision_config": SIGLIP, "projector_hidden_size": 16}),
    "nemotron_h_omni": (
        "nemotron_h-experts",
        {"vision_config": RADIO, "audio_config": EARS, "vision_hidden_size": 16, "projector_hidden_size": 16},
    ),
}
"""The language model's shape, and the rest."""


def make(kind: str) -> Any:
    case, rest = SHAPES[kind]
    text = {"model_type": case.split("-")[0], "vocab_size": VOCAB, "num_hidden_layers": 2, **CASES[case]}
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, text_config=text, **rest)
    return stir(transformers.AutoModelForMultimodalLM.from_config(config).eval(), scale=0.2)


def test_every_kind_has_a_shape() -> None:
    assert SHAPES.keys() == COMPOSITES.keys()
    assert not COMPOSITES.keys() & DIALECTS.keys()


@torch.no_grad()
@pytest.mark.parametrize("kind", SHAPES)
def test_the_language_model_is_read(kind: str, tmp_path: Path) -> None:
    theirs = make(kind)
    theirs.save_pretrained(tmp_path / "whole")
    with pytest.warns(
        UserWarning, match=r"\d+ tensors are no part of the language model and are left out: (model\.visual|model\.multi|mlp1|vision_model)"
    ):
        ours = from_pretrained(tmp_path / "whole")
    rows = torch.randint(0, VOCAB, (2, 11), generator=torch.Generator().manual_seed(0))
    expected = torch.stack([theirs(input_ids=row[None], use_cache=False).logits[0] for row in rows])
    torch.testing.assert_close(ours(rows), expected, atol=1e-4, rtol=0)
    last, state = ours.scan(rows[:, :7], logits_at="last")
    for t in range(7, 11):
        torch.testing.assert_close(last, expected[:, t - 1], atol=1e-4, rtol=0)
        last, state = ours.step(rows[:, t], state)
    export_pretrained(ours, tmp_path / "text")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "text").eval()
    assert again.config.model_type == SHAPES[kind][0].split("-")[0]
    torch.testing.assert_close(again(rows[:1], use_cache=False).logits, expected[:1], atol=1e-4, rtol=0)


def test_layers_that_guess_further_ahead_are_left_out(tmp_path: Path) -> None:
    make("qwen3_5").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({**load_file(file), "mtp.fc.weight": torch.zeros(2, 2)}, file, {"format": "pt"})
    with pytest.warns(UserWarning, match="left out"):
        from_pretrained(tmp_path)
    save_file({**load_file(file), "model.hearing.weight": torch.zeros(2, 2)}, file, {"format": "pt"})
    with pytest.warns(UserWarning, match="left out"), pytest.raises(ValueError, match=r"model\.hearing\.weight"):
        from_pretrained(tmp_path)


def test_the_older_name_of_a_config_inside(tmp_path: Path) -> None:
    make("nemotron_h_omni").save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="left out"):
        expected = from_pretrained(tmp_path).state_dict()
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({"llm_config": config.pop("text_config"), **config}))
    with pytest.warns(UserWarning, match="left out"):
        found = from_pretrained(tmp_path).state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(("changes", "message"), [
    ({"text_config": None}, "a qwen3_5 must have a text_config"), ({"tie_word_embeddings": True}, "contradict each other"),
    ({"quantization_config": {"bits": 4}}, "quantization_config must be None"),
])  # fmt: skip
def test_a_config_that_cannot_be_read(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    make("qwen3_5").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(ValueError, match=message):
        from_pretrained(tmp_path)
