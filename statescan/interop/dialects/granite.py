"""Granite 4 (granitemoehybrid): Mamba-2 or attention, then a gated MLP, alone or with experts, and fixed multipliers everywhere."""

from __future__ import annotations

from typing import Any

from statescan.interop.config import Reader
from statescan.interop.dialects.anatomy import ends, layers_of, only, pair_names, pairs_of, which
from statescan.interop.dialects.bamba import mamba2, mamba2_names
from statescan.interop.keys import Rename, Reshape, fused
from statescan.spec import Spec

_WORDS = {"linear_attention": "M", "mamba": "M", "full_attention": "A", "attention": "A"}


def read(c: Reader) -> Spec[Any]:
    """config.json -> Spec."""
    width, depth, eps = c.size("hidden_size", 4096), c.size("num_hidden_layers", 32), c.take("rms_norm_eps", 1e-6)
    c.fixed("hidden_act", "silu")
    c.fixed("normalization_function", "rmsnorm")
    c.skip("init_method")
    kinds = which(c, depth, _WORDS, ("linear_attention",) * depth)
    shared, experts = c.size("shared_intermediate_size", 1024), c.take("num_local_experts", 8)
    moe = {"top_k": c.take("num_experts_per_tok", 2), "d_ff": c.take("intermediate_size", 11008)}
    second: Spec[Any] = Spec("MoE", num_experts=experts, shared_ff=shared, **moe) if experts else Spec("GatedMLP", d_ff=shared)
    parts = {"M": mamba2(c, width, eps), "A": _attention(c, width), "F": second}
    return Spec(
        "LanguageModel", vocab_size=c.size("vocab_size", 32000), d_model=width, norm_eps=eps, residual_in_fp32=False,
        tie_embeddings=c.take("tie_word_embeddings", False), layers="".join(kind + "F" for kind in kinds),
        parts={name: part for name, part in parts.items() if name in (*kinds, "F")},
        embedding_scale=c.number("embedding_multiplier", 1.0), residual_scale=c.number("residual_multiplier", 1.0),
        logit_scale=1 / c.number("logits_scaling", 1.0),
    )  # fmt: skip


def _attention(c: Reader, width: int) -> Spec[Any]:
    heads, bias = c.size("num_attention_heads", 32), c.take("attention_bias", False)
    size = c.size("head_dim", width // heads)
    positions = c.take("position_embedding_type", None)
    if positions not in (None, "nope", "rope"):
        raise c.error(f"position_embedding_type must be 'rope', 'nope' or null; got {positions!r}")
    base, _ = c.rotary()
    return Spec(
        "Attention", num_heads=heads, num_kv_heads=c.take("num_key_value_heads", None) or heads, head_dim=size,
        rotary_base=base if positions == "rope" else None, bias=bias, out_bias=bias, scale=c.number("attention_multiplier", 1.0),
    )  # fmt: skip


def write(spec: Spec[Any]) -> dict[str, Any]:
    """Spec -> config.json."""
    a, pairs = spec.arguments, pairs_of(spec, ["GatedMLP", "MoE"])
    kinds = {"Mamba2": "linear_attention", "Attention": "full_attention"}
    second = only((second for _, second in pairs), "GatedMLP", "MoE")
    if second.name == "MoE":
        moe = second.arguments
        feed = {"intermediate_size": moe["d_ff"], "num_experts_per_tok": moe["top_k"], "shared_intermediate_size": moe["shared_ff"]}
    else:
        feed = {"shared_intermediate_size": second.arguments["d_ff"]}
    mixers = [mixer for mixer, _ in pairs]
    config = {
        "vocab_size": a["vocab_size"], "hidden_size": a["d_model"], "num_hidden_layers": len(pairs), "rms_norm_eps": a["norm_eps"],
        "tie_word_embeddings": a["tie_embeddings"], "hidden_act": "silu",
        **feed, "num_local_experts": second.arguments.get("num_experts", 0),
        "embedding_multiplier": a["embedding_scale"], "residual_multiplier": a["residual_scale"],
        "logits_scaling": round(1 / a["logit_scale"], 12),
        **mamba2_names(only((m for m in mixers if m.name != "Attention"), "Mamba2"), a["d_model"]),
        "layer_types": [kinds[mixer.name] for mixer in mixers],
    }  # fmt: skip
    if "full_attention" in config["layer_types"]:
        part = only((m for m in mixers if m.name == "Attention"), "Attention").arguments
        turned = part["rotary_base"] is not None
        scale = (part["head_dim"] or a["d_model"] // part["num_heads"]) ** -0.5 if part["scale"] is None else part["scale"]
        config.update(
            num_attention_heads=part["num_heads"], num_key_value_heads=part["num_kv_heads"] or part["num_heads"],
            attention_bias=part["bias"], attention_multiplier=scale, position_embedding_type="rope" if turned else None,
        )  # fmt: skip
        if turned:
            config["rope_parameters"] = {"rope_type": "default", "rope_theta": part["rotary_base"]}
    return config


def keys(spec: Spec[Any]) -> list[Rename | Reshape]:
    """Names of tensors."""
    mixers = {"Mamba2": "mamba", "Attention": "self_attn"}
    names: list[Rename | Reshape] = [*ends(), *pair_names(spec, mixers, "shared_mlp", ("input_layernorm", "post_attention_layernorm"))]
    for i, second in enumerate(layers_of(spec)[1::2]):
        theirs, ours, experts = f"model.layers.{i}", f"backbone.layers.{2 * i + 1}.mixer", second.name == "MoE"
        shared = f"{ours}.shared" if experts else ours
        inner = second.arguments["shared_ff" if experts else "d_ff"]
        two = (f"{shared}.gate_proj.weight", f"{shared}.up_proj.weight")
        names += [
            fused(f"{theirs}.shared_mlp.input_linear.weight", two, (inner, inner)),
            Rename(f"{theirs}.shared_mlp.output_linear", f"{shared}.down_proj"),
        ]
        if experts:
            renamed = {
                "router.layer": "router", "input_linear.weight": "experts.gate_up_proj", "output_linear.weight": "experts.down_proj",
            }  # fmt: skip
            names += [Rename(f"{theirs}.block_sparse_moe.{one}", f"{ours}.{other}") for one, other in renamed.items()]
    return names
