"""Bamba: Mamba-2 or attention, then a gated MLP."""

from __future__ import annotations

from typing import Any

from statescan.interop.config import Reader
from statescan.interop.dialects.anatomy import ends, only, pair_names, pairs_of
from statescan.interop.keys import Rename, Reshape
from statescan.spec import Spec


def read(c: Reader) -> Spec[Any]:
    """config.json -> Spec."""
    width, depth, eps = c.size("hidden_size"), c.size("num_hidden_layers"), c.take("rms_norm_eps", 1e-5)
    c.fixed("hidden_act", "silu")
    attends = set(c.take("attn_layer_indices", None) or ())
    parts = {"M": mamba2(c, width, eps), "A": attention(c, width), "F": Spec("GatedMLP", d_ff=c.size("intermediate_size", 14336))}
    if c.take("mlp_bias", False):
        parts["F"] = parts["F"].override({"bias": True})
    return Spec(
        "LanguageModel", vocab_size=c.size("vocab_size", 128000), d_model=width, norm_eps=eps, residual_in_fp32=False,
        tie_embeddings=c.take("tie_word_embeddings", False),
        layers="".join("AF" if i in attends else "MF" for i in range(depth)),
        parts={name: part for name, part in parts.items() if name != "A" or attends},
    )  # fmt: skip


def mamba2(c: Reader, width: int, eps: float) -> Spec[Any]:
    """The Mamba-2 mixer, in the names that Bamba and Granite share."""
    expand, heads = c.size("mamba_expand", 2), c.size("mamba_n_heads", 128)
    size = c.take("mamba_d_head", "auto")
    c.derived("mamba_d_head", "auto" if size == "auto" else expand * width // heads)
    return Spec(
        "Mamba2", d_state=c.size("mamba_d_state", 256), d_conv=c.size("mamba_d_conv", 4), expand=expand, headdim=expand * width // heads,
        ngroups=c.size("mamba_n_groups", 1), bias=c.take("mamba_proj_bias", False), conv_bias=c.take("mamba_conv_bias", True),
        dt_limit=c.take("time_step_limit", (0.0, float("inf"))), chunk_size=c.size("mamba_chunk_size", 256), norm_eps=eps,
    )  # fmt: skip


def mamba2_names(m: Spec[Any], width: int) -> dict[str, Any]:
    """The inverse of :func:`mamba2`."""
    a = m.arguments
    size = a["headdim"] or 64
    return {
        "mamba_d_state": a["d_state"], "mamba_d_conv": a["d_conv"], "mamba_expand": int(a["expand"]), "mamba_d_head": size,
        "mamba_n_heads": int(a["expand"] * width) // size, "mamba_n_groups": a["ngroups"], "mamba_proj_bias": a["bias"],
        "mamba_conv_bias": a["conv_bias"], "time_step_limit": list(a["dt_limit"]), "mamba_chunk_size": a["chunk_size"],
    }  # fmt: skip


def attention(c: Reader, width: int) -> Spec[Any]:
    """Grouped-query attention, rotary positions on half of a head."""
    heads, bias = c.size("num_attention_heads", 32), c.take("attention_bias", False)
    size = c.take("head_dim", None) or width // heads
    base, part = c.rotary(0.5)
    return Spec(
        "Attention", num_heads=heads, num_kv_heads=c.take("num_key_value_heads", 8) or heads, head_dim=size, rotary_base=base,
        rotary_dim=int(size * part), bias=bias, out_bias=bias,
    )  # fmt: skip


def write(spec: Spec[Any]) -> dict[str, Any]:
    """Spec -> config.json."""
    a, pairs = spec.arguments, pairs_of(spec, ["GatedMLP"])
    attends = [i for i, (mixer, _) in enumerate(pairs) if mixer.name == "Attention"]
    mlp = only((second for _, second in pairs), "GatedMLP").arguments
    mixer = only((mixer for mixer, _ in pairs if mixer.name != "Attention"), "Mamba2")
    config = {
        "vocab_size": a["vocab_size"], "hidden_size": a["d_model"], "num_hidden_layers": len(pairs), "rms_norm_eps": a["norm_eps"],
        "tie_word_embeddings": a["tie_embeddings"], "hidden_act": "silu", "intermediate_size": mlp["d_ff"], "mlp_bias": mlp["bias"],
        "attn_layer_indices": attends or None, **mamba2_names(mixer, a["d_model"]),
    }  # fmt: skip
    if attends:
        config.update(attention_names(only((m for m, _ in pairs if m.name == "Attention"), "Attention")))
    return config


def attention_names(part: Spec[Any]) -> dict[str, Any]:
    """The inverse of :func:`attention`; of a head's size only what the file can say."""
    a = part.arguments
    size = a["head_dim"]
    return {
        "num_attention_heads": a["num_heads"], "num_key_value_heads": a["num_kv_heads"] or a["num_heads"], "attention_bias": a["bias"],
        "rope_parameters": {
            "rope_type": "default", "rope_theta": a["rotary_base"], "partial_rotary_factor": (a["rotary_dim"] or size) / size,
        },
    }  # fmt: skip


def keys(spec: Spec[Any]) -> list[Rename | Reshape]:
    """Names of tensors."""
    mixers = {"Mamba2": "mamba", "Attention": "self_attn"}
    return [*ends(norm="model.final_layernorm"), *pair_names(spec, mixers, "feed_forward", ("input_layernorm", "pre_ff_layernorm"))]
