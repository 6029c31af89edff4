"""LFM2: gated short convolutions or attention, then a gated MLP, or experts in all but the first layers."""

from __future__ import annotations

from typing import Any

from statescan.interop.config import Reader
from statescan.interop.dialects.anatomy import Unlike, ends, layers_of, only, pair_names, pairs_of, which
from statescan.interop.dialects.experts import expert_keys
from statescan.interop.keys import Rename, Reshape
from statescan.spec import Spec

_GATED = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}


def read(c: Reader) -> Spec[Any]:
    """config.json -> Spec."""
    width, depth = c.size("hidden_size", 2560), c.size("num_hidden_layers", 32)
    # The first files carry the names of the original project.
    for name in ("block_dim", "conv_dim", "conv_dim_out"):
        c.derived(name, width)
    c.derived("block_norm_eps", c.take("norm_eps", 1e-5))
    c.derived("num_heads", c.size("num_attention_heads", 32))
    c.fixed("block_use_swiglu", True)
    c.fixed("use_pos_enc", True)
    c.skip("block_mlp_init_scale", "block_out_init_scale", "block_use_xavier_init", "conv_use_xavier_init", "theta")
    attends = c.take("full_attn_idxs", None)
    listed = tuple("full_attention" if attends is None or i in attends else "conv" for i in range(depth))
    return _stack(c, width, listed, "F" * depth, {"F": Spec("GatedMLP", d_ff=_inner(c))})


def read_moe(c: Reader) -> Spec[Any]:
    """config.json -> Spec."""
    depth, dense = c.size("num_hidden_layers", 32), c.take("num_dense_layers", 2)
    parts: dict[str, Spec[Any]] = {
        "F": Spec("GatedMLP", d_ff=c.size("intermediate_size", 7168)),
        "E": Spec(
            "MoE", num_experts=c.size("num_experts", 32), top_k=c.size("num_experts_per_tok", 4), score="sigmoid",
            d_ff=c.size("moe_intermediate_size", 1792), renormalise=c.take("norm_topk_prob", True), renormalise_eps=1e-6,
            scale=c.number("routed_scaling_factor", 1.0), selection_bias=c.take("use_expert_bias", True),
        ),
    }  # fmt: skip
    return _stack(c, c.size("hidden_size", 2048), (), "".join("F" if i < dense else "E" for i in range(depth)), parts)


def _stack(c: Reader, width: int, listed: tuple[str, ...], seconds: str, parts: dict[str, Spec[Any]]) -> Spec[Any]:
    heads, eps = c.size("num_attention_heads", 32), c.take("norm_eps", 1e-5)
    kinds = which(c, len(seconds), {"conv": "C", "full_attention": "A"}, listed)
    base, part = c.rotary(default_base=1e6)
    if part != 1:
        raise c.error(f"partial_rotary_factor must be 1; got {part}")
    parts = {
        **parts,
        "C": Spec("GatedShortConv", d_conv=c.size("conv_L_cache", 3), bias=c.take("conv_bias", False)),
        "A": Spec(
            "Attention", num_heads=heads, num_kv_heads=c.size("num_key_value_heads", 8), head_dim=c.size("head_dim", width // heads),
            rotary_base=base, qk_norm=True, norm_eps=eps,
        ),
    }  # fmt: skip
    tied = c.take("tie_word_embeddings", True)
    return Spec(
        "LanguageModel", vocab_size=c.size("vocab_size", 65536), d_model=width, norm_eps=eps, residual_in_fp32=False,
        tie_embeddings=c.take("tie_embedding", tied), layers="".join(map("".join, zip(kinds, seconds, strict=True))),
        parts={name: part for name, part in parts.items() if name in (*kinds, *seconds)},
    )  # fmt: skip


def _inner(c: Reader) -> int:
    """Width of the MLP: the size in the file, or two thirds of it, multiplied and rounded up."""
    size = c.size("intermediate_size", 12288)
    size = c.size("block_ff_dim", size)
    multiple, factor = c.size("block_multiple_of", 256), c.take("block_ffn_dim_multiplier", 1.0)
    if not c.take("block_auto_adjust_ff_dim", True):
        return size
    inner = int(2 * size / 3)
    return inner if factor is None else multiple * -(-int(factor * inner) // multiple)


def write(spec: Spec[Any]) -> dict[str, Any]:
    """Spec -> config.json."""
    config, seconds = _names(spec, ["GatedMLP"])
    return {**config, "block_auto_adjust_ff_dim": False, "intermediate_size": only(seconds, "GatedMLP").arguments["d_ff"]}


def write_moe(spec: Spec[Any]) -> dict[str, Any]:
    """Spec -> config.json."""
    config, seconds = _names(spec, ["GatedMLP", "MoE"])
    dense = [second for second in seconds if second.name == "GatedMLP"]
    if any(second.name == "MoE" for second in seconds[: len(dense)]):
        raise Unlike("an MLP stands behind experts")
    moe = only(seconds[len(dense) :], "MoE").arguments
    if dense:
        config["intermediate_size"] = only(dense, "GatedMLP").arguments["d_ff"]
    return {
        **config, "num_dense_layers": len(dense), "num_experts": moe["num_experts"], "num_experts_per_tok": moe["top_k"],
        "moe_intermediate_size": moe["d_ff"], "norm_topk_prob": moe["renormalise"], "routed_scaling_factor": moe["scale"],
        "use_expert_bias": moe["selection_bias"],
    }  # fmt: skip


def _names(spec: Spec[Any], second: list[str]) -> tuple[dict[str, Any], list[Spec[Any]]]:
    """What both kinds write, and the second layers of the pairs."""
    a, pairs = spec.arguments, pairs_of(spec, second)
    mixers = [mixer for mixer, _ in pairs]
    config = {
        "vocab_size": a["vocab_size"], "hidden_size": a["d_model"], "num_hidden_layers": len(pairs), "norm_eps": a["norm_eps"],
        "tie_word_embeddings": a["tie_embeddings"],
        "layer_types": ["full_attention" if mixer.name == "Attention" else "conv" for mixer in mixers],
    }  # fmt: skip
    if "conv" in config["layer_types"]:
        conv = only((m for m in mixers if m.name != "Attention"), "GatedShortConv").arguments
        config.update(conv_L_cache=conv["d_conv"], conv_bias=conv["bias"])
    if "full_attention" in config["layer_types"]:
        part = only((m for m in mixers if m.name == "Attention"), "Attention").arguments
        config.update(
            num_attention_heads=part["num_heads"], num_key_value_heads=part["num_kv_heads"] or part["num_heads"],
            rope_parameters={"rope_type": "default", "rope_theta": part["rotary_base"]},
        )  # fmt: skip
    return config, [other for _, other in pairs]


def keys(spec: Spec[Any]) -> list[Rename | Reshape]:
    """Names of tensors."""
    mixers = {"GatedShortConv": "conv", "Attention": "self_attn"}
    names: list[Rename | Reshape] = [
        *ends(norm="model.embedding_norm"), *pair_names(spec, mixers, "feed_forward", ("operator_norm", "ffn_norm"))
    ]  # fmt: skip
    layers = layers_of(spec)
    for i, (mixer, second) in enumerate(zip(layers[::2], layers[1::2], strict=True)):
        theirs, ours = f"model.layers.{i}", f"backbone.layers.{2 * i + 1}.mixer"
        if second.name == "GatedMLP":
            names += [Rename(f"{theirs}.feed_forward.{w}", f"{ours}.{name}") for w, name in _GATED.items()]
        else:
            renamed = {"gate": "router", "expert_bias": "selection_bias"}
            names += [Rename(f"{theirs}.feed_forward.{name}", f"{ours}.{mine}") for name, mine in renamed.items()]
            names += expert_keys(f"{theirs}.feed_forward.experts", f"{ours}.experts", second.arguments["num_experts"], ("w1", "w3", "w2"))
        if mixer.name == "Attention":
            renamed = {"out_proj": "o_proj", "q_layernorm": "q_norm", "k_layernorm": "k_norm"}
            names += [Rename(f"{theirs}.self_attn.{name}", f"backbone.layers.{2 * i}.mixer.{mine}") for name, mine in renamed.items()]
    return names
