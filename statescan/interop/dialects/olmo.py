"""OLMo-Hybrid: Gated DeltaNet under norms before each part, attention under norms behind each part; a gated MLP follows both."""

from __future__ import annotations

from typing import Any

import torch

from statescan.interop.config import Reader
from statescan.interop.dialects.anatomy import Unlike, ends, layers_of, only, pairs_of
from statescan.interop.dialects.kimi_linear import NO_TOKENS
from statescan.interop.dialects.qwen3 import delta, delta_names, delta_widths
from statescan.interop.keys import Rename, Reshape
from statescan.spec import Spec

_TYPES = {"linear_attention": "DF", "full_attention": "AG"}


def read(c: Reader) -> Spec[Any]:
    """config.json -> Spec."""
    width, depth, eps = c.size("hidden_size", 3840), c.size("num_hidden_layers", 32), c.number("rms_norm_eps", 1e-6)
    heads, bias = c.size("num_attention_heads", 30), c.take("attention_bias", False)
    c.fixed("hidden_act", "silu")
    c.skip("linear_a_log_min", "linear_a_log_max", "linear_dt_min", "linear_dt_max", "linear_dt_init_floor")  # initialisation
    types = c.take("layer_types", None) or ["linear_attention" if (i + 1) % 4 else "full_attention" for i in range(depth)]
    if len(types) != depth or not set(types) <= _TYPES.keys():
        raise c.error(f"layer_types must name {depth} layers, each {' or '.join(_TYPES)}; got {types}")
    key_width = int(0.75 * width / heads)
    mlp: Spec[Any] = Spec("GatedMLP", d_ff=c.size("intermediate_size", 11008))
    attention: Spec[Any] = Spec(
        "Attention", num_heads=heads, num_kv_heads=c.take("num_key_value_heads", None) or heads, head_dim=width // heads,
        rotary_base=_rotary_base(c), qk_norm="whole", norm_eps=eps, bias=bias, out_bias=bias,
    )  # fmt: skip
    return Spec(
        "LanguageModel", vocab_size=c.size("vocab_size", 100352), d_model=width, norm_eps=eps, residual_in_fp32=False,
        tie_embeddings=c.take("tie_word_embeddings", False), layers="".join(_TYPES[kind] for kind in types),
        parts={
            "D": delta(c, (heads, heads, key_width, 2 * key_width), 1e-5, c.take("linear_allow_neg_eigval", True)),
            "F": mlp,
            "A": Spec("PostNorm", mixer=attention, norm_eps=eps),
            "G": Spec("PostNorm", mixer=mlp, norm_eps=eps),
        },
    )  # fmt: skip


def _rotary_base(c: Reader) -> float | None:
    """Without a base there are no positions, as in the released model."""
    if (c.config.get("rope_parameters") or {"rope_theta": 0}).get("rope_theta") is None:
        c.skip("rope_parameters")
        return None
    return c.rotary()[0]


def write(spec: Spec[Any]) -> dict[str, Any]:
    """Spec -> config.json."""
    a, pairs = spec.arguments, pairs_of(spec, ["GatedMLP", "PostNorm"])
    behind = [first.name == "PostNorm" for first, _ in pairs]
    if not any(behind) or behind != [second.name == "PostNorm" for _, second in pairs]:
        raise Unlike("its attention layers have no norms behind their parts")
    attention = only((first.arguments["mixer"] for (first, _), post in zip(pairs, behind, strict=True) if post), "Attention").arguments
    mlp = only(
        (second.arguments["mixer"] if post else second for (_, second), post in zip(pairs, behind, strict=True)), "GatedMLP"
    ).arguments
    first = only((first for (first, _), post in zip(pairs, behind, strict=True) if not post), "GatedDeltaNet")
    return {
        "vocab_size": a["vocab_size"], "hidden_size": a["d_model"], "num_hidden_layers": len(pairs), "rms_norm_eps": a["norm_eps"],
        "tie_word_embeddings": a["tie_embeddings"], "hidden_act": "silu", "intermediate_size": mlp["d_ff"],
        "layer_types": ["full_attention" if post else "linear_attention" for post in behind],
        "num_attention_heads": attention["num_heads"], "num_key_value_heads": attention["num_kv_heads"] or attention["num_heads"],
        "attention_bias": attention["bias"], "rope_parameters": {"rope_type": "default", "rope_theta": attention["rotary_base"]},
        "linear_allow_neg_eigval": first.arguments["allow_neg_eigval"], **delta_names([first]), **NO_TOKENS,
    }  # fmt: skip


def keys(spec: Spec[Any]) -> list[Rename | Reshape]:
    """Names of tensors, in the module's spelling and in that of what transformers writes, which has the last word."""
    names: list[Rename | Reshape] = [*ends()]
    for i, mixer in enumerate(layers_of(spec)[::2]):
        theirs, ours, then = f"model.layers.{i}", f"backbone.layers.{2 * i}", f"backbone.layers.{2 * i + 1}"
        behind = mixer.name == "PostNorm"
        if behind:
            first, second, part = ["post_attention_layernorm", "feedforward_layer_norm"], ["post_feedforward_layernorm"], "self_attn"
        else:
            first, part = ["input_layernorm", "attention_layer_norm"], "linear_attn"
            second = ["post_attention_layernorm", "feedforward_layer_norm"]
            names.append(_convolutions(f"{theirs}.linear_attn", f"{ours}.mixer", delta_widths(mixer)))
        names += [Rename(f"{theirs}.{norm}", f"{ours}.norm") for norm in first]
        names += [Rename(f"{theirs}.{norm}", f"{then}.norm") for norm in second]
        names += [Rename(f"{theirs}.{part}", f"{ours}.mixer"), Rename(f"{theirs}.mlp", f"{then}.mixer")]
    return names


def _convolutions(theirs: str, ours: str, widths: tuple[int, int, int]) -> Reshape:
    """Three in a file, which transformers joins, and parts again in thirds, whatever the widths of queries, keys and values."""
    names = ("q_conv1d.weight", "k_conv1d.weight", "v_conv1d.weight")
    return Reshape(
        tuple(f"{theirs}.{name}" for name in names), tuple(f"{ours}.{name}" for name in names),
        lambda *parts: torch.cat(parts).split(widths), lambda *parts: torch.cat(parts).chunk(3),
    )  # fmt: skip
