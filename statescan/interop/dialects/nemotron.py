"""Nemotron-H: one mixer a layer, which is Mamba-2, attention without positions, an MLP or a mixture of them."""

from __future__ import annotations

import math
from typing import Any

from statescan.interop.config import Reader
from statescan.interop.dialects.anatomy import Unlike, ends, expand_to, layers_of, only
from statescan.interop.dialects.experts import expert_keys
from statescan.interop.keys import Rename, Reshape
from statescan.spec import Spec

_WORDS = {"mamba": "M", "linear_attention": "M", "attention": "A", "full_attention": "A", "mlp": "F", "moe": "E"}
_SIGNS = {"M": "M", "*": "A", "-": "F", "E": "E"}
"""What a layer is, as a word and as a character of ``hybrid_override_pattern``."""
_KINDS = {"Mamba2": "linear_attention", "Attention": "full_attention", "MLP": "mlp", "MoE": "moe"}
_DT = {"time_step_max": "dt_max", "time_step_floor": "dt_init_floor"}
_NAMES = {
    "router": "gate", "selection_bias": "gate.e_score_correction_bias", "shared": "shared_experts", "latent_in": "fc1_latent_proj",
    "latent_out": "fc2_latent_proj",
}  # fmt: skip
"""Our name of a part of MoE -> theirs."""


def read(c: Reader) -> Spec[Any]:
    """config.json -> Spec."""
    width, eps = c.size("hidden_size", 4096), c.number("layer_norm_epsilon", 1e-5)
    c.fixed("mamba_hidden_act", "silu")
    c.fixed("mlp_hidden_act", "relu2")
    c.fixed("num_nextn_predict_layers", 0)
    c.fixed("tie_word_embeddings", False)
    c.fixed("sliding_window", None)
    c.fixed("attention_bias", False)
    # Nothing asks for these: kernels, training, layers that predict further tokens, and what other names say already.
    c.skip("use_mamba_kernels", "mamba_ssm_cache_dtype", "rescale_prenorm_residual", "mtp_layers_block_type", "mtp_hybrid_override_pattern")
    c.skip("moe_shared_expert_overlap", "expand", "time_step_limit", "mamba_proj_bias", "rope_theta", "partial_rotary_factor")
    layers = _layers(c)
    if "E" in layers:
        c.fixed("mlp_bias", False)  # of the shared expert too
    parts = {"M": _mamba2(c, width, eps), "A": _attention(c), "F": _mlp(c), "E": _moe(c)}
    return Spec(
        "LanguageModel", vocab_size=c.size("vocab_size", 131072), d_model=width, norm_eps=eps, tie_embeddings=False,
        residual_in_fp32=c.take("residual_in_fp32", False), layers=layers, parts={name: parts[name] for name in parts if name in layers},
    )  # fmt: skip


def _layers(c: Reader) -> str:
    given, pattern = c.take("layers_block_type", None), c.take("hybrid_override_pattern", None)
    spelled = [_WORDS.get(word) for word in given] if given else [_SIGNS.get(sign) for sign in pattern or ""]
    letters = "".join(letter for letter in spelled if letter is not None)
    if not letters or len(letters) != len(spelled):
        raise c.error(f"layers_block_type must list {', '.join(_WORDS)}; got {given or pattern!r}")
    c.derived("num_hidden_layers", len(letters))
    return letters


def _mamba2(c: Reader, width: int, eps: float) -> Spec[Any]:
    heads, size, least = c.size("mamba_num_heads", 128), c.size("mamba_head_dim", 64), c.take("time_step_min", 0.001)
    # transformers clamps the step from below at time_step_min, whatever time_step_limit says; only chunks, not single steps.
    return Spec(
        "Mamba2", d_state=c.size("ssm_state_size", 128), d_conv=c.size("conv_kernel", 4), expand=expand_to(heads * size, width),
        headdim=size, ngroups=c.size("n_groups", 8), bias=c.take("use_bias", False), conv_bias=c.take("use_conv_bias", True),
        dt_limit=(least, math.inf), dt_min=least or 0.001, chunk_size=c.size("chunk_size", 128), norm_eps=eps, **c.takes(_DT),
    )  # fmt: skip


def _attention(c: Reader) -> Spec[Any]:
    heads = c.size("num_attention_heads", 32)
    return Spec(
        "Attention", num_heads=heads, num_kv_heads=c.take("num_key_value_heads", 8) or heads, head_dim=c.size("head_dim", 128),
        rotary_base=None,
    )  # fmt: skip


def _mlp(c: Reader) -> Spec[Any]:
    return Spec("MLP", d_ff=c.size("intermediate_size", 21504), bias=c.take("mlp_bias", False))


def _moe(c: Reader) -> Spec[Any]:
    c.fixed("n_shared_experts", 1)  # of this width
    return Spec(
        "MoE", num_experts=c.size("n_routed_experts", 8), top_k=c.size("num_experts_per_tok", 2), score="sigmoid",
        d_ff=c.size("moe_intermediate_size", 7688), renormalise=c.take("norm_topk_prob", True), selection_bias=True,
        scale=c.number("routed_scaling_factor", 1.0), groups=c.size("n_group", 1), top_groups=c.size("topk_group", 1),
        activation="relu2", gated=False, latent=c.take("moe_latent_size", None),
        shared_ff=c.size("moe_shared_expert_intermediate_size", 7688),
    )  # fmt: skip


def write(spec: Spec[Any]) -> dict[str, Any]:
    """Spec -> config.json."""
    a, layers = spec.arguments, layers_of(spec)
    names = {layer.name for layer in layers}
    if not names <= _KINDS.keys():
        raise Unlike(f"a layer is one of {sorted(names - _KINDS.keys())}, not of {list(_KINDS)}")
    part = {name: only((layer for layer in layers if layer.name == name), name).arguments for name in names}
    config = {
        "vocab_size": a["vocab_size"], "hidden_size": a["d_model"], "layer_norm_epsilon": a["norm_eps"], "tie_word_embeddings": False,
        "residual_in_fp32": a["residual_in_fp32"], "layers_block_type": [_KINDS[layer.name] for layer in layers],
    }  # fmt: skip
    if m := part.get("Mamba2"):
        size = m["headdim"] or 64
        config.update(
            ssm_state_size=m["d_state"], conv_kernel=m["d_conv"], mamba_num_heads=int(m["expand"] * a["d_model"]) // size,
            mamba_head_dim=size, n_groups=m["ngroups"], use_bias=m["bias"], use_conv_bias=m["conv_bias"], chunk_size=m["chunk_size"],
            time_step_min=m["dt_limit"][0], **{theirs: m[ours] for theirs, ours in _DT.items()},
        )  # fmt: skip
    if m := part.get("Attention"):
        heads = m["num_heads"]
        size = m["head_dim"] or a["d_model"] // heads
        config.update(num_attention_heads=heads, num_key_value_heads=m["num_kv_heads"] or heads, head_dim=size)
    if m := part.get("MLP"):
        config.update(intermediate_size=m["d_ff"], mlp_bias=m["bias"])
    if m := part.get("MoE"):
        config.update(
            n_routed_experts=m["num_experts"], num_experts_per_tok=m["top_k"], moe_intermediate_size=m["d_ff"],
            norm_topk_prob=m["renormalise"], routed_scaling_factor=m["scale"], n_group=m["groups"], topk_group=m["top_groups"],
            moe_latent_size=m["latent"], moe_shared_expert_intermediate_size=m["shared_ff"],
        )  # fmt: skip
    return config


def keys(spec: Spec[Any]) -> list[Rename | Reshape]:
    """Names of tensors: ours are theirs but for the embedding and the experts."""
    names: list[Rename | Reshape] = [*ends("backbone.embeddings", "backbone.norm_f")]
    for i, layer in enumerate(layers_of(spec)):
        if layer.name == "MoE":
            prefix = f"backbone.layers.{i}.mixer"
            names += [Rename(f"{prefix}.{theirs}", f"{prefix}.{ours}") for ours, theirs in _NAMES.items()]
            names += expert_keys(f"{prefix}.experts", f"{prefix}.experts", layer.arguments["num_experts"], ("up_proj", "down_proj"))
    return names
