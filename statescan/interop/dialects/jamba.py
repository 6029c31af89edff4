"""Jamba: Mamba with weighted norms of dt, B and C, or attention without positions; then a gated MLP or a mixture of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from statescan.interop.config import Reader
from statescan.interop.dialects.anatomy import Unlike, ends, layers_of, only, pair_names, pairs_of
from statescan.interop.dialects.experts import expert_keys
from statescan.interop.keys import Rename, Reshape
from statescan.spec import Spec


def read(c: Reader) -> Spec[Any]:
    """config.json -> Spec."""
    width, depth, eps = c.size("hidden_size"), c.size("num_hidden_layers"), c.number("rms_norm_eps", 1e-6)
    c.fixed("hidden_act", "silu")
    c.fixed("mamba_inner_layernorms", True)
    c.fixed("sliding_window", None)
    c.skip("use_mamba_kernels", "use_mambapy", "use_associative_scan")  # which kernel computes the same thing
    attends, mixes = _every(c, "attn_layer", 8, 4, depth), _every(c, "expert_layer", 2, 1, depth)
    experts, chosen = c.size("num_experts", 16), c.size("num_experts_per_tok", 2)
    heads, d_ff = c.size("num_attention_heads", 32), c.size("intermediate_size", 14336)
    parts: dict[str, Spec[Any]] = {
        "M": Spec(
            "Mamba", d_state=c.size("mamba_d_state", 16), d_conv=c.size("mamba_d_conv", 4), expand=c.size("mamba_expand", 2),
            dt_rank=c.take("mamba_dt_rank", "auto"), conv_bias=c.take("mamba_conv_bias", True), bias=c.take("mamba_proj_bias", False),
            bcdt_norm="rms_weighted", norm_eps=eps,
        ),
        "A": Spec(
            "Attention", num_heads=heads, num_kv_heads=c.take("num_key_value_heads", 8) or heads,
            head_dim=c.take("head_dim", None) or width // heads, rotary_base=None,
        ),
        "F": Spec("GatedMLP", d_ff=d_ff),
        "E": Spec("MoE", num_experts=experts, top_k=chosen, d_ff=d_ff, renormalise=False),
    }  # fmt: skip
    layers = "".join(("A" if i in attends else "M") + ("E" if experts > 1 and i in mixes else "F") for i in range(depth))
    return Spec(
        "LanguageModel", vocab_size=c.size("vocab_size", 65536), d_model=width, norm_eps=eps, residual_in_fp32=False,
        tie_embeddings=c.take("tie_word_embeddings", False), layers=layers, parts={name: parts[name] for name in parts if name in layers},
    )  # fmt: skip


def _every(c: Reader, name: str, period: int, offset: int, depth: int) -> list[int]:
    """The layers that ``NAME_period`` and ``NAME_offset`` pick."""
    period, offset = c.size(f"{name}_period", period), c.take(f"{name}_offset", offset)
    return [i for i in range(depth) if i % period == offset]


def write(spec: Spec[Any]) -> dict[str, Any]:
    """Spec -> config.json."""
    a, pairs = spec.arguments, pairs_of(spec, ["GatedMLP", "MoE"])
    depth = len(pairs)
    attends = [i for i, (mixer, _) in enumerate(pairs) if mixer.name == "Attention"]
    mixes = [i for i, (_, second) in enumerate(pairs) if second.name == "MoE"]
    m = only((mixer for mixer, _ in pairs if mixer.name != "Attention"), "Mamba").arguments
    if m["bcdt_norm"] != "rms_weighted":
        raise Unlike("its Mamba layers have no weighted norms of dt, B and C")
    config = {
        "vocab_size": a["vocab_size"], "hidden_size": a["d_model"], "num_hidden_layers": depth, "rms_norm_eps": a["norm_eps"],
        "tie_word_embeddings": a["tie_embeddings"], "hidden_act": "silu", "num_experts": 1,
        "intermediate_size": pairs[0][1].arguments["d_ff"], "mamba_d_state": m["d_state"], "mamba_d_conv": m["d_conv"],
        "mamba_expand": int(m["expand"]), "mamba_dt_rank": m["dt_rank"], "mamba_conv_bias": m["conv_bias"],
        "mamba_proj_bias": m["bias"], **_spaced(attends, depth, "attn_layer", 8, 4),
    }  # fmt: skip
    if mixes:
        moe = only((pairs[i][1] for i in mixes), "MoE").arguments
        config.update(num_experts=moe["num_experts"], num_experts_per_tok=moe["top_k"], **_spaced(mixes, depth, "expert_layer", 2, 1))
    if attends:
        attention = only((mixer for mixer, _ in pairs if mixer.name == "Attention"), "Attention").arguments
        heads = attention["num_heads"]
        config.update(num_attention_heads=heads, num_key_value_heads=attention["num_kv_heads"] or heads)
        if (attention["head_dim"] or a["d_model"] // heads) * heads != a["d_model"]:
            config["head_dim"] = attention["head_dim"]
    return config


def _spaced(layers: Sequence[int], depth: int, name: str, period: int, offset: int) -> dict[str, int]:
    """The inverse of :func:`_every`: the usual spacing where it picks these layers, else the closest one that does."""
    spacings = [(period, offset), *((p, o) for p in range(1, depth + 2) for o in range(p))]
    for period, offset in spacings:
        if [i for i in range(depth) if i % period == offset] == list(layers):
            return {f"{name}_period": period, f"{name}_offset": offset}
    raise ValueError(f"its layers {list(layers)} of {depth} are not evenly spaced, as {name}_period of transformers says them")


def keys(spec: Spec[Any]) -> list[Rename | Reshape]:
    """Names of tensors."""
    mixers, norms = {"Mamba": "mamba", "Attention": "self_attn"}, ("input_layernorm", "pre_ff_layernorm")
    names: list[Rename | Reshape] = [*ends(norm="model.final_layernorm"), *pair_names(spec, mixers, "feed_forward", norms)]
    for i, second in enumerate(layers_of(spec)[1::2]):
        if second.name == "MoE":
            theirs, ours = f"model.layers.{i}.feed_forward.experts", f"backbone.layers.{2 * i + 1}.mixer.experts"
            names += expert_keys(theirs, ours, second.arguments["num_experts"])
    return names
