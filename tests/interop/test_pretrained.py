"""Model folders: what is read, what is refused and how the message reads, and that exports are what was read."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import statescan as ss
from statescan.data.tokenizers import load_tokenizer
from statescan.interop import export_pretrained, from_pretrained, save_pretrained
from statescan.interop.foreign import TRANSFORMERS, plain_floats, tagged_floats

TINY = ["mamba-tiny", "mamba2-tiny"]


@pytest.fixture(params=TINY)
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return ss.create_model(request.param).eval()


@pytest.fixture
def folder(model: Any, tmp_path: Path) -> Path:
    save_pretrained(model, tmp_path / "saved")
    return tmp_path / "saved"


def weights(folder: Path) -> dict[str, Tensor]:
    file = folder / "model.safetensors"
    return load_file(file) if file.exists() else torch.load(folder / "pytorch_model.bin", weights_only=True)


def config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def rewrite(folder: Path, *, drop: tuple[str, ...] = (), **changes: Any) -> None:
    data = {k: v for k, v in {**config(folder), **changes}.items() if k not in drop}
    (folder / "config.json").write_text(json.dumps(data))


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and torch.equal(a[k].view(torch.uint8), b[k].view(torch.uint8)) for k in a
    )


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
    from statescan.spec import annotations

    for dialect in TRANSFORMERS.values():
        assert set(dialect.mixer.values()) <= annotations(ss.registry.lookup(dialect.part)).keys()


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


# -- tokenizers -------------------------------------------------------------------------------------------------------------


def word_tokenizer(folder: Path, words: int = 6) -> Path:
    tokenizers = pytest.importorskip("tokenizers")
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {f"w{i}": i for i in range(words - 1)} | {"<end>": words - 1}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<end>", "tokenizer_class": "PreTrainedTokenizerFast"}')
    return folder


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


# -- faults in the weights --------------------------------------------------------------------------------------------------


def test_missing_surprising_and_misshapen_tensors_are_named_together(folder: Path) -> None:
    tensors = weights(folder)
    del tensors["backbone.layers.1.mixer.D"]
    tensors["backbone.layers.1.mixer.E"] = torch.zeros(3)
    for i in range(5):
        tensors[f"extra.{i}"] = torch.zeros(1)
    tensors["backbone.norm_f.weight"] = torch.zeros(31)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match="does not fit its config") as caught:
        from_pretrained(folder)
    message = str(caught.value)
    assert "1 missing: backbone.layers.1.mixer.D;" in message
    assert "6 surprising: backbone.layers.1.mixer.E, extra.0, extra.1, extra.2, ... (6 in all)" in message
    assert "backbone.norm_f.weight is (31,), expected (32,)" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(folder: Path, value: float) -> None:
    tensors = weights(folder)
    tensors["backbone.layers.1.mixer.in_proj.weight"][3, 4] = value
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"not finite: backbone\.layers\.1\.mixer\.in_proj\.weight \(1 of "):
        from_pretrained(folder)


def test_quantised_weights_are_refused(folder: Path) -> None:
    tensors = weights(folder)
    tensors["backbone.layers.0.mixer.in_proj.weight"] = tensors["backbone.layers.0.mixer.in_proj.weight"].to(torch.int8)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"wrong kind of number in backbone\.layers\.0\.mixer\.in_proj\.weight \(torch\.int8\)"):
        from_pretrained(folder)


# -- faults in the folder and its config ------------------------------------------------------------------------------------


def test_not_a_model_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no config\.json"):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        from_pretrained(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="must hold an object"):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match="of no known kind"):
        from_pretrained(tmp_path)


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no weights: expected one of model\.safetensors"):
        from_pretrained(folder)


def test_our_config_is_checked(folder: Path) -> None:
    rewrite(folder, version=2)
    with pytest.raises(ValueError, match="reads version 1"):
        from_pretrained(folder)
    rewrite(folder, version=1, model={**config(folder)["model"], "d_modle": 3})
    with pytest.raises(ValueError, match=r"config\.json: LanguageModel has no argument 'd_modle'; did you mean 'd_model'"):
        from_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba3"}, "model_type 'mamba3' cannot be read; did you mean 'mamba2'|'mamba'"),
        ({"model_type": "llama"}, "model_type 'llama' cannot be read"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu'; got 'gelu'"),
        ({"state_sise": 3}, "state_sise=3 is an option that is not known here; did you mean 'state_size'"),
        ({"attention_window": 3}, "attention_window=3 is an option that is not known here"),
        ({"hidden_size": None}, "hidden_size must be a positive integer; got None"),
        ({"intermediate_size": 65}, "intermediate_size=65 contradicts the other sizes, which make it 64"),
        ({"state_size": "8"}, "Mamba.d_state must be int; got '8'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config must be None"),
        ({"num_hidden_layers": 0}, "layers"),
    ],
)
def test_a_transformers_config_is_checked(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    export_pretrained(ss.create_model("mamba-tiny"), tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attn_layer_idx": [1]}, r"attn_layer_idx must be \[\]; got \[1\], which is not supported"),
        ({"d_intermediate": 64}, "d_intermediate must be 0; got 64"),
        ({"rms_norm": False}, "rms_norm must be True; got False"),
        ({"ssm_cfg": {"layer": "Mamba3"}}, "ssm_cfg.layer 'Mamba3' cannot be read"),
        ({"ssm_cfg": {"d_sate": 8}}, "Mamba has no argument 'd_sate'; did you mean 'd_state'"),
        ({"n_layers": 2}, "n_layers=2 is an option that is not known here; did you mean 'n_layer'"),
    ],
)
def test_an_original_config_is_checked(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    export_pretrained(ss.create_model("mamba-tiny"), tmp_path, format="mamba_ssm")
    rewrite(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("target", [None, "transformers", "mamba_ssm"])
def test_no_value_of_any_key_does_worse_than_a_clear_error(model: Any, tmp_path: Path, target: Any) -> None:
    """Every key of every kind of config.json, at values that make no sense there: read, or a ValueError in one line."""
    if target is None:
        save_pretrained(model, tmp_path)
    else:
        export_pretrained(model, tmp_path, format=target)
    original = config(tmp_path)

    def paths(data: dict[str, Any], prefix: tuple[str, ...] = ()) -> Any:
        for key, value in data.items():
            yield (*prefix, key)
            if isinstance(value, dict):
                yield from paths(value, (*prefix, key))

    refused = 0
    for path in paths(original):
        for value in (None, -1, 0, "x", []):
            data = json.loads(json.dumps(original))
            *parents, leaf = path
            place = data
            for key in parents:
                place = place[key]
            place[leaf] = value
            (tmp_path / "config.json").write_text(json.dumps(data))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    from_pretrained(tmp_path)
                except ValueError as error:
                    refused += 1
                    assert "\n" not in str(error), (path, value)  # noqa: PT017
                except Exception as error:
                    raise AssertionError(f"{'.'.join(path)}={value!r} raises {type(error).__name__}: {error}") from error
    assert refused > 40


def test_first_released_configs_are_read(tmp_path: Path) -> None:
    """The first files of either project: few keys in one, the names of both in the other; vocabularies padded to a multiple."""
    model = ss.create_model("mamba-tiny", vocab_size=64)
    export_pretrained(model, tmp_path, format="mamba_ssm")
    old = {"d_model": 32, "n_layer": 2, "vocab_size": 61, "ssm_cfg": {"d_state": 8}, "rms_norm": True, "residual_in_fp32": True}
    (tmp_path / "config.json").write_text(json.dumps({**old, "fused_add_norm": True, "pad_vocab_size_multiple": 8}))
    assert same_bits(from_pretrained(tmp_path).state_dict(), model.state_dict())
    hf = tmp_path / "hf"
    export_pretrained(model, hf)
    both = {"d_model": 32, "n_layer": 2, "d_inner": 64, "ssm_cfg": {}, "rms_norm": True, "fused_add_norm": True, "torch_dtype": "float32"}
    rewrite(hf, **both, pad_vocab_size_multiple=8, rescale_prenorm_residual=False, use_cache=True, time_step_rank=2)
    assert same_bits(from_pretrained(hf).state_dict(), model.state_dict())


def test_older_mamba2_configs_say_norm_before_gate_and_do_not_mean_it(tmp_path: Path) -> None:
    model = ss.create_model("mamba2-tiny")
    export_pretrained(model, tmp_path)
    rewrite(tmp_path, norm_before_gate=True, rms_norm=True, time_step_limit=[0.0, float("inf")])
    ids = torch.arange(5)[None]
    assert torch.equal(from_pretrained(tmp_path)(ids), model.eval()(ids))


def test_infinities_in_json() -> None:
    data = {"a": [0.0, float("inf"), {"b": float("-inf")}], "c": "Infinity", "d": 3}
    assert plain_floats(json.loads(json.dumps(tagged_floats(data), allow_nan=False))) == data


# -- what cannot be exported ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "target", "message"),
    [
        ({"D_has_hdim": True}, "transformers", "has no Mamba2 with D_has_hdim=True"),
        ({"norm_before_gate": True}, "transformers", "has no Mamba2 with norm_before_gate=True"),
        ({"rmsnorm": False}, "transformers", "has no Mamba2 with rmsnorm=False"),
        ({"norm_eps": 1e-3}, "transformers", "one epsilon for all norms"),
        ({"norm_eps": 1e-3}, "mamba_ssm", "has no Mamba2 with norm_eps=0.001"),
        ({"learnable_init_states": True}, "mamba_ssm", "has no Mamba2 with learnable_init_states=True"),
        ({"expand": 1.5}, "transformers", "whole numbers for expand"),
    ],
)
def test_what_the_target_cannot_express_is_refused(tmp_path: Path, part: dict[str, Any], target: Any, message: str) -> None:
    model = ss.LanguageModel(11, 16, layers="M", parts={"M": ss.Spec("Mamba2", headdim=8, **part)})
    with pytest.raises(ValueError, match=message):
        export_pretrained(model, tmp_path, format=target)
    assert not list(tmp_path.iterdir())


def test_a_mixture_cannot_be_exported(tmp_path: Path) -> None:
    model = ss.LanguageModel(11, 16, layers="MN", parts={"M": ss.Spec("Mamba"), "N": ss.Spec("Mamba2", headdim=8)})
    with pytest.raises(ValueError, match="stacks of Mamba or of Mamba2 only"):
        export_pretrained(model, tmp_path)
    save_pretrained(model, tmp_path)
    assert same_bits(from_pretrained(tmp_path).state_dict(), model.state_dict())
    with pytest.raises(ValueError, match="format must be"):
        export_pretrained(model, tmp_path, format="gguf")  # type: ignore[arg-type]


# -- the hub ----------------------------------------------------------------------------------------------------------------


def fake_hub(monkeypatch: pytest.MonkeyPatch, download: Any) -> None:
    module = ModuleType("huggingface_hub")
    module.snapshot_download = download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


def test_a_hub_id_is_downloaded(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_pretrained(model, tmp_path, format="mamba_ssm")
    calls = []

    def download(name: str, allow_patterns: list[str]) -> str:
        calls.append((name, allow_patterns))
        return str(tmp_path)

    fake_hub(monkeypatch, download)
    assert same_bits(from_pretrained("owner/name-1.4b").state_dict(), model.state_dict())
    assert calls == [("owner/name-1.4b", ["*.json", "*.safetensors"]), ("owner/name-1.4b", ["*.json", "pytorch_model*.bin"])]


def test_a_hub_that_fails_or_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, allow_patterns: list[str]) -> str:
        raise OSError("no network")

    fake_hub(monkeypatch, download)
    with pytest.raises(ValueError, match="no such folder: owner/name; and it cannot be had from the hub: no network"):
        from_pretrained("owner/name")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"statescan\[hub\]"):
        from_pretrained("owner/name")
