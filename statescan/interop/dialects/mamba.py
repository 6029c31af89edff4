"""Mamba and Mamba-2: stacks of one mixer."""

from __future__ import annotations

from typing import Any

from statescan.interop.config import Reader
from statescan.interop.dialects.anatomy import layers_of, only
from statescan.interop.keys import Rename, Reshape
from statescan.registry import lookup
from statescan.spec import Spec

_MODEL = {
    "vocab_size": "vocab_size",
    "layer_norm_epsilon": "norm_eps",
    "tie_word_embeddings": "tie_embeddings",
    "residual_in_fp32": "residual_in_fp32",
}
_MIXER = {
    "state_size": "d_state",
    "conv_kernel": "d_conv",
    "expand": "expand",
    "use_bias": "bias",
    "use_conv_bias": "conv_bias",
    "time_step_min": "dt_min",
    "time_step_max": "dt_max",
    "time_step_floor": "dt_init_floor",
}
MAMBA = {**_MIXER, "time_step_rank": "dt_rank", "time_step_init_scheme": "dt_init", "time_step_scale": "dt_scale"}
MAMBA2 = {**_MIXER, "head_dim": "headdim", "n_groups": "ngroups", "time_step_limit": "dt_limit", "chunk_size": "chunk_size"}
"""Their name -> our argument of the mixer."""


def read_mamba(c: Reader) -> Spec[Any]:
    """config.json -> Spec."""
    return model(c, Spec("Mamba", **c.takes(MAMBA)), {"tie_embeddings": True})


def read_mamba2(c: Reader) -> Spec[Any]:
    """config.json -> Spec."""
    # These files carry names of Mamba; the model they describe uses none of them (it gates first, and knows no low-rank step).
    c.skip("norm_before_gate", "time_step_rank", "time_step_init_scheme", "time_step_scale")
    size, inner = c.number("head_dim", 64), int(c.number("expand", 2) * c.size("hidden_size"))
    c.derived("num_heads", inner / size)
    mixer = {"headdim": 64, "ngroups": 8, "norm_eps": c.take("layer_norm_epsilon", 1e-5), **c.takes(MAMBA2)}
    return model(c, Spec("Mamba2", **mixer), {"tie_embeddings": False})


def model(c: Reader, mixer: Spec[Any], absent: dict[str, Any]) -> Spec[Any]:
    """A stack of one mixer; what the file lacks has the values of ``absent``, or ours."""
    width, depth = c.size("hidden_size"), c.size("num_hidden_layers")
    inner = int(mixer.arguments.get("expand", 2) * width)
    c.size("vocab_size")
    c.number("expand", 2)
    c.fixed("hidden_act", "silu")
    c.fixed("rms_norm", True)
    c.fixed("ssm_cfg", {})
    for name, value in {"intermediate_size": inner, "d_inner": inner, "d_model": width, "n_layer": depth}.items():
        c.derived(name, value)
    # Initialisation, which kernel computes the same thing, and in the first files what the original project called its sizes:
    c.skip("rescale_prenorm_residual", "use_mambapy", "use_associative_scan", "fused_add_norm", "pad_vocab_size_multiple", "tie_embeddings")
    return Spec("LanguageModel", d_model=width, layers=f"M*{depth}", parts={"M": mixer}, **{**absent, **c.takes(_MODEL)})


def write_mamba(spec: Spec[Any]) -> dict[str, Any]:
    """Spec -> config.json."""
    mixer, config = _config(spec, "Mamba", MAMBA)
    built = lookup("Mamba")(spec.arguments["d_model"], **mixer)
    return {**config, "intermediate_size": built.d_inner, "time_step_rank": built.dt_rank}


def write_mamba2(spec: Spec[Any]) -> dict[str, Any]:
    """Spec -> config.json."""
    mixer, config = _config(spec, "Mamba2", MAMBA2)
    built = lookup("Mamba2")(spec.arguments["d_model"], **mixer)
    return {**config, "head_dim": built.headdim, "num_heads": built.nheads}


def _config(spec: Spec[Any], name: str, names: dict[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    layers = layers_of(spec)
    mixer = only(layers, name).arguments
    if not float(mixer["expand"]).is_integer():
        raise ValueError(f"transformers takes whole numbers for expand; got {mixer['expand']}")
    config = {
        "num_hidden_layers": len(layers),
        "hidden_size": spec.arguments["d_model"],
        "hidden_act": "silu",
        **{theirs: spec.arguments[ours] for theirs, ours in _MODEL.items()},
        **{theirs: mixer[ours] for theirs, ours in names.items()},
        "expand": int(mixer["expand"]),
    }
    return dict(mixer), config


def keys(spec: Spec[Any]) -> list[Rename | Reshape]:
    """Names of tensors: ours are theirs but for one."""
    return [Rename("backbone.embeddings", "backbone.embedding")]
