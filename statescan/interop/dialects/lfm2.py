"""LFM2: gated short convolutions or attention, then a gated MLP."""

from __future__ import annotations

from typing import Any

from statescan.interop.config import Reader
from statescan.interop.dialects.anatomy import ends, layers_of, only, pair_names, pairs_of, which
from statescan.interop.keys import Rename, Reshape
from statescan.spec import Spec


def read(c: Reader) -> Spec[Any]:
    """config.json -> Spec."""
    width, depth, heads = c.size("hidden_size", 2560), c.size("num_hidden_layers", 32), c.size("num_attention_heads", 32)
    eps, bias = c.take("norm_eps", 1e-5), c.take("conv_bias", False)
    # The first files carry the names of the original project.
    for name in ("block_dim", "conv_dim", "conv_dim_out"):
        c.derived(name, width)
    c.derived("block_norm_eps", eps)
    c.derived("num_heads", heads)
    c.fixed("block_use_swiglu", True)
    c.fixed("use_pos_enc", True)
    c.skip("block_mlp_init_scale", "block_out_init_scale", "block_use_xavier_init", "conv_use_xavier_init", "theta")
    attends = c.take("full_attn_idxs", None)
    listed = tuple("full_attention" if attends is None or i in attends else "conv" for i in range(depth))
    kinds = which(c, depth, {"conv": "C", "full_attention": "A"}, listed)
    base, part = c.rotary(default_base=1e6)
    if part != 1:
        raise c.error(f"partial_rotary_factor must be 1; got {part}")
    parts: dict[str, Spec[Any]] = {
        "C": Spec("GatedShortConv", d_conv=c.size("conv_L_cache", 3), bias=bias),
        "A": Spec(
            "Attention", num_heads=heads, num_kv_heads=c.size("num_key_value_heads", 8), head_dim=c.size("head_dim", width // heads),
            rotary_base=base, qk_norm=True, norm_eps=eps,
        ),
        "F": Spec("GatedMLP", d_ff=_inner(c)),
    }  # fmt: skip
    tied = c.take("tie_word_embeddings", True)
    return Spec(
        "LanguageModel", vocab_size=c.size("vocab_size", 65536), d_model=width, norm_eps=eps, residual_in_fp32=False,
        tie_embeddings=c.take("tie_embedding", tied), layers="".join(kind + "F" for kind in kinds),
        parts={name: part for name, part in parts.items() if name in (*kinds, "F")},
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
    a, pairs = spec.arguments, pairs_of(spec, ["GatedMLP"])
    mixers = [mixer for mixer, _ in pairs]
    config = {
        "vocab_size": a["vocab_size"], "hidden_size": a["d_model"], "num_hidden_layers": len(pairs), "norm_eps": a["norm_eps"],
        "tie_word_embeddings": a["tie_embeddings"], "block_auto_adjust_ff_dim": False,
        "intermediate_size": only((second for _, second in pairs), "GatedMLP").arguments["d_ff"],
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
    return config


def keys(spec: Spec[Any]) -> list[Rename | Reshape]:
    """Names of tensors."""
    mixers = {"GatedShortConv": "conv", "Attention": "self_attn"}
    names: list[Rename | Reshape] = [
        *ends(norm="model.embedding_norm"), *pair_names(spec, mixers, "feed_forward", ("operator_norm", "ffn_norm"))
    ]  # fmt: skip
    for i, mixer in enumerate(layers_of(spec)[::2]):
        theirs, ours = f"model.layers.{i}", f"backbone.layers.{2 * i + 1}.mixer"
        names += [Rename(f"{theirs}.feed_forward.{w}", f"{ours}.{name}") for w, name in _GATED.items()]
        if mixer.name == "Attention":
            renamed = {"out_proj": "o_proj", "q_layernorm": "q_norm", "k_layernorm": "k_norm"}
            names += [Rename(f"{theirs}.self_attn.{name}", f"backbone.layers.{2 * i}.mixer.{mine}") for name, mine in renamed.items()]
    return names


_GATED = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
