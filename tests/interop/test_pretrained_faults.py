"""What is wrong with a folder is said in one line: weights, configuration, what cannot be exported, the hub."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from model_folders import config, rewrite, same_bits, weights
from safetensors.torch import save_file

import statescan as ss
from statescan.interop import export_pretrained, from_pretrained, save_pretrained
from statescan.interop.config import plain_floats, tagged_floats

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
        ({"attn_layer_idx": [1]}, r"attn_layer_idx must be \(\) or None; got \[1\], which is not supported"),
        ({"d_intermediate": 64}, "d_intermediate must be 0 or None; got 64"),
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
        ({"norm_eps": 1e-3}, "transformers", "has no Mamba2 with norm_eps=0.001"),
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
    with pytest.raises(ValueError, match="no model type of it stacks Mamba, Mamba2 like this"):
        export_pretrained(model, tmp_path)
    with pytest.raises(ValueError, match="stacks of Mamba or of Mamba2 only"):
        export_pretrained(model, tmp_path, format="mamba_ssm")
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
    assert calls == [("owner/name-1.4b", ["*.json", "*.jinja", weights]) for weights in ("*.safetensors", "pytorch_model*.bin")]


def test_a_hub_that_fails_or_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, allow_patterns: list[str]) -> str:
        raise OSError("no network")

    fake_hub(monkeypatch, download)
    with pytest.raises(ValueError, match="no such folder: owner/name; and it cannot be had from the hub: no network"):
        from_pretrained("owner/name")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"statescan\[hub\]"):
        from_pretrained("owner/name")
