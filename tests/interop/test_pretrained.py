"""Model folders come back as they were written, in every way of storing them, and exports are what was read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from model_folders import config, rewrite, same_bits, weights, word_tokenizer
from safetensors.torch import save_file

import statescan as ss
from statescan.data.tokenizers import load_tokenizer
from statescan.interop import export_pretrained, from_pretrained, save_pretrained
from statescan.interop.dialects.mamba import MAMBA, MAMBA2

# -- round trips ------------------------------------------------------------------------------------------------------------


def test_our_folder_comes_back_bit_for_bit(model: Any, folder: Path) -> None:
    again = from_pretrained(folder)
    assert ss.Spec.of(again).resolved() == ss.Spec.of(model).resolved()
    assert same_bits(model.state_dict(), again.state_dict())
    assert again.lm_head.weight is again.backbone.embedding.weight
    assert not again.training
    ids = torch.arange(7)[None]
    assert torch.equal(model(ids), again(ids))


def test_our_config_is_resolved_and_strict_json(model: Any, folder: Path) -> None:
    def no_constants(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    data = json.loads((folder / "config.json").read_text(), parse_constant=no_constants)
    assert (data["format"], data["version"]) == ("statescan", 1)
    part = data["model"]["parts"]["M"]
    assert part["d_conv"] == 4
    assert part["expand"] == 2
    assert "lm_head.weight" not in weights(folder)


@pytest.mark.parametrize("target", ["transformers", "mamba_ssm"])
def test_an_export_reads_back_to_the_same_model(model: Any, target: Any, tmp_path: Path) -> None:
    export_pretrained(model, tmp_path / "a", format=target)
    again = from_pretrained(tmp_path / "a")
    assert same_bits(model.state_dict(), again.state_dict())
    ids = torch.arange(9)[None]
    assert torch.equal(model(ids), again(ids))
    export_pretrained(again, tmp_path / "b", format=target)
    assert config(tmp_path / "a") == config(tmp_path / "b")
    assert same_bits(weights(tmp_path / "a"), weights(tmp_path / "b"))


@pytest.mark.parametrize("target", ["transformers", "mamba_ssm"])
@pytest.mark.parametrize("kind", ["Mamba", "Mamba2"])
def test_an_export_keeps_every_argument(kind: str, target: Any, tmp_path: Path) -> None:
    """Every name of the tables at a value that is not its default goes out and comes back."""
    common = {
        "d_state": 5,
        "d_conv": 3,
        "expand": 3,
        "bias": True,
        "conv_bias": False,
        "dt_min": 0.01,
        "dt_max": 0.2,
        "dt_init_floor": 1e-3,
    }
    special = {
        "Mamba": {"dt_rank": 3, "dt_init": "constant", "dt_scale": 0.5},
        "Mamba2": {"headdim": 4, "ngroups": 3, "dt_limit": (0.1, 0.7), "chunk_size": 16},
    }[kind]
    model = ss.LanguageModel(
        29, 8, layers="M*3", parts={"M": ss.Spec(kind, **common, **special)}, tie_embeddings=False, residual_in_fp32=False
    )
    export_pretrained(model, tmp_path, format=target)
    again = from_pretrained(tmp_path)
    assert ss.Spec.of(again).resolved() == ss.Spec.of(model).resolved()


def test_epsilon_travels_to_transformers(tmp_path: Path) -> None:
    part = ss.Spec("Mamba2", d_state=4, headdim=8, norm_eps=1e-3)
    model = ss.LanguageModel(11, 8, layers="M", parts={"M": part}, norm_eps=1e-3)
    export_pretrained(model, tmp_path)
    again = from_pretrained(tmp_path)
    assert again.backbone.layers[0].norm.eps == again.backbone.layers[0].mixer.norm.eps == again.backbone.norm_f.eps == 1e-3


def test_the_tables_name_arguments_that_exist() -> None:
    from statescan.spec import hints_of

    for part, names in (("Mamba", MAMBA), ("Mamba2", MAMBA2)):
        assert set(names.values()) <= hints_of(ss.registry.lookup(part)).keys()


def test_half_precision_keeps_its_bits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    export_pretrained(ss.create_model("mamba-tiny").to(torch.bfloat16), tmp_path / "a")
    stored = weights(tmp_path / "a")
    assert {t.dtype for t in stored.values()} == {torch.bfloat16, torch.float32}
    again = from_pretrained(tmp_path / "a")
    assert again.backbone.embedding.weight.dtype == torch.bfloat16
    assert again.backbone.layers[0].mixer.A_log.dtype == torch.float32
    export_pretrained(again, tmp_path / "b")
    assert same_bits(stored, weights(tmp_path / "b"))


def test_dynamics_stored_in_half_precision_are_held_in_float32(tmp_path: Path) -> None:
    export_pretrained(ss.create_model("mamba2-tiny"), tmp_path)
    save_file({k: v.to(torch.bfloat16) for k, v in weights(tmp_path).items()}, tmp_path / "model.safetensors", {"format": "pt"})
    model = from_pretrained(tmp_path)
    mixer = model.backbone.layers[0].mixer
    assert mixer.A_log.dtype == mixer.D.dtype == mixer.dt_bias.dtype == torch.float32
    assert mixer.in_proj.weight.dtype == torch.bfloat16
    export_pretrained(model, tmp_path / "again", dtype=torch.bfloat16)
    assert same_bits(weights(tmp_path), weights(tmp_path / "again"))
    assert config(tmp_path / "again")["dtype"] == "bfloat16"
    assert from_pretrained(tmp_path, dtype=torch.float64).backbone.layers[0].mixer.A_log.dtype == torch.float64


@pytest.mark.parametrize("bits", [None, "int8"])
def test_a_dtype_is_what_to_makes_of_it(bits: Any, tmp_path: Path) -> None:
    """Precisions, values, and what is tied; at a size whose weights live in large pages."""
    model = ss.create_model("mamba-tiny", vocab_size=9000)
    if bits:
        ss.quantize(model, bits)
    export = save_pretrained if bits else export_pretrained
    export(model, tmp_path)
    loaded, expected = from_pretrained(tmp_path, dtype=torch.bfloat16), from_pretrained(tmp_path).to(torch.bfloat16)
    assert {k: v.dtype for k, v in loaded.state_dict().items()} == {k: v.dtype for k, v in expected.state_dict().items()}
    assert same_bits(loaded.state_dict(), expected.state_dict())
    assert (loaded.lm_head.weight is loaded.backbone.embedding.weight) == (expected.lm_head.weight is expected.backbone.embedding.weight)
    assert all(p.requires_grad for p in loaded.parameters())


# -- tokenizers -------------------------------------------------------------------------------------------------------------


def test_the_byte_tokenizer_is_a_name(tmp_path: Path) -> None:
    model = ss.create_model("mamba-tiny", vocab_size=257)
    model.tokenizer = load_tokenizer("bytes")
    save_pretrained(model, tmp_path)
    assert config(tmp_path)["tokenizer"] == "bytes"
    assert from_pretrained(tmp_path).tokenizer.encode("ab") == [97, 98]


@pytest.mark.parametrize("target", [None, "transformers", "mamba_ssm"])
def test_a_tokenizer_file_travels_along(tmp_path: Path, target: Any) -> None:
    model = ss.create_model("mamba-tiny")
    model.tokenizer = load_tokenizer(word_tokenizer(tmp_path / "words"))
    if target is None:
        save_pretrained(model, tmp_path / "a")
    else:
        export_pretrained(model, tmp_path / "a", format=target)
    again = from_pretrained(tmp_path / "a")
    assert again.tokenizer.encode("w3 w1") == [3, 1]
    assert again.tokenizer.eos_id == 5
    if target == "transformers":
        assert config(tmp_path / "a")["eos_token_id"] == 5


def test_a_missing_damaged_or_foreign_tokenizer(folder: Path) -> None:
    rewrite(folder, tokenizer="tokenizer.json")
    with pytest.raises(ValueError, match=r"no tokenizer at .*tokenizer\.json"):
        from_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer\.json"):
        from_pretrained(folder)
    word_tokenizer(folder, words=62)
    with pytest.raises(ValueError, match="the tokenizer has 62 tokens, the model 61"):
        from_pretrained(folder)
    rewrite(folder, tokenizer="words")
    with pytest.raises(ValueError, match="tokenizer must be 'bytes'"):
        from_pretrained(folder)


# -- every way of storing ---------------------------------------------------------------------------------------------------


def shard(folder: Path, suffix: str = ".safetensors") -> None:
    """Split model.safetensors into three shards with an index."""
    tensors = weights(folder)
    (folder / "model.safetensors").unlink()
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    table = {name: f"{stem}-{i % 3 + 1:05}-of-00003{suffix}" for i, name in enumerate(sorted(tensors))}
    for file in set(table.values()):
        part = {name: tensors[name] for name in tensors if table[name] == file}
        if suffix == ".safetensors":
            save_file(part, folder / file, {"format": "pt"})
        else:
            torch.save(part, folder / file)
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards(model: Any, tmp_path: Path, suffix: str) -> None:
    export_pretrained(model, tmp_path)
    shard(tmp_path, suffix)
    assert same_bits(model.state_dict(), from_pretrained(tmp_path).state_dict())
    victim = next(tmp_path.glob(f"*-00002-of-00003{suffix}"))
    victim.unlink()
    with pytest.raises(ValueError, match=f"lacks 1 of 3 shards: {victim.name}"):
        from_pretrained(tmp_path)


def test_a_shard_index_cannot_reach_outside_its_folder(model: Any, tmp_path: Path) -> None:
    export_pretrained(model, tmp_path)
    shard(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"]["lm_head.weight"] = "../secret.safetensors"
    index.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="outside its folder"):
        from_pretrained(tmp_path)


def test_a_bin_is_read_as_tensors_only(model: Any, tmp_path: Path) -> None:
    export_pretrained(model, tmp_path, format="mamba_ssm")
    torch.save({"backbone.norm_f.weight": Path("/")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="other objects, which are not loaded for safety"):
        from_pretrained(tmp_path)
    torch.save([torch.zeros(1)], tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="not a state dictionary"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("target", ["transformers", "mamba_ssm"])
def test_arguments_that_the_target_does_not_have(tmp_path: Path, target: Any) -> None:
    """What only initialises is left out, what computes is refused."""
    slow = ss.Spec("Mamba", d_state=4, A_init_range=(0.1, 0.1))
    model = ss.LanguageModel(16, 8, "M*2", {"M": slow})
    export_pretrained(model, tmp_path / "slow", format=target)
    again = from_pretrained(tmp_path / "slow")
    assert same_bits(model.state_dict(), again.state_dict())
    assert again.backbone.layers[0].mixer.A_log.exp().sub(0.1).abs().max() < 1e-6
    assert "A_init_range" not in (tmp_path / "slow" / "config.json").read_text()
    for part in (ss.Spec("Mamba", d_state=4, share="m"), ss.Spec("Mamba2", d_state=4, headdim=8, share="m")):
        with pytest.raises(ValueError, match="share"):
            export_pretrained(ss.LanguageModel(16, 8, "M", {"M": part}), tmp_path / "shared", format=target)


@pytest.mark.parametrize("target", ["transformers", "mamba_ssm"])
@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_truncated_file(model: Any, tmp_path: Path, target: Any, keep: int) -> None:
    export_pretrained(model, tmp_path, format=target)
    file = next(p for p in tmp_path.iterdir() if p.suffix in (".safetensors", ".bin"))
    data = file.read_bytes()
    file.write_bytes(data[:keep] if keep >= 0 else data[: len(data) // 2])
    with pytest.raises(ValueError, match=rf"{file.name}.*not a complete"):
        from_pretrained(tmp_path)


# -- tied heads -------------------------------------------------------------------------------------------------------------


def test_a_tied_head_may_be_absent_equal_or_alone_but_not_different(tmp_path: Path) -> None:
    model = ss.create_model("mamba-tiny")
    export_pretrained(model, tmp_path)
    tensors = weights(tmp_path)
    name, embedding = "lm_head.weight", "backbone.embeddings.weight"
    assert name not in tensors
    file = tmp_path / "model.safetensors"
    for stored in ({**tensors, name: tensors[embedding].clone()}, {k if k != embedding else name: v for k, v in tensors.items()}):
        save_file(stored, file, {"format": "pt"})
        again = from_pretrained(tmp_path)
        assert again.lm_head.weight is again.backbone.embedding.weight
        assert same_bits(model.state_dict(), again.state_dict())
    save_file({**tensors, name: tensors[embedding] + 1}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"lm_head\.weight and backbone\.embedding\.weight are tied .* but differ"):
        from_pretrained(tmp_path)


def test_an_untied_head_must_be_there(tmp_path: Path) -> None:
    model = ss.create_model("mamba-tiny", tie_embeddings=False)
    export_pretrained(model, tmp_path)
    assert same_bits(model.state_dict(), from_pretrained(tmp_path).state_dict())
    tensors = weights(tmp_path)
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 missing: lm_head\.weight"):
        from_pretrained(tmp_path)
