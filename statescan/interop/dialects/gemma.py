"""RecurrentGemma: gated linear recurrences and local attention, then a gated MLP."""

from __future__ import annotations

from typing import Any

import torch

from statescan.interop.config import Reader
from statescan.interop.dialects.anatomy import ends, only, pair_names, pairs_of
from statescan.interop.keys import Rename, Reshape
from statescan.spec import Spec

_WORDS = {"recurrent": "R", "attention": "A"}


def embedding_scale(width: int) -> float:
    """The root of the width as the checkpoints hold it, rounded to bfloat16."""
    return float(torch.tensor(width**0.5, dtype=torch.bfloat16))


def read(c: Reader) -> Spec[Any]:
    """config.json -> Spec."""
    width, depth, heads = c.size("hidden_size", 2560), c.size("num_hidden_layers", 26), c.size("num_attention_heads", 10)
    c.fixed("hidden_activation", "gelu_pytorch_tanh")
    c.fixed("embeddings_scale_by_sqrt_dim", True)
    c.derived("head_dim", width // heads)
    c.skip("w_init_variance_scale", "final_w_init_variance_scale")
    doubled = c.size("intermediate_size", 7680)
    if doubled % 2:
        raise c.error(f"intermediate_size is twice the width of the MLP, so it must be even; got {doubled}")
    unit = c.take("block_types", ("recurrent", "recurrent", "attention"))
    if not unit or any(word not in _WORDS for word in unit):
        raise c.error(f"block_types must list 'recurrent' and 'attention'; got {unit!r}")
    kinds = [_WORDS[unit[i % len(unit)]] for i in range(depth)]
    base, part = c.rotary(0.5)
    parts: dict[str, Spec[Any]] = {
        "R": Spec("RGLRU", width=c.take("lru_width", None) or width, num_heads=heads, d_conv=c.size("conv1d_width", 4)),
        "A": Spec(
            "Attention", num_heads=heads, num_kv_heads=c.take("num_key_value_heads", None) or heads, head_dim=width // heads,
            window=c.size("attention_window_size", 2048), rotary_base=base, rotary_dim=int(width // heads * part),
            bias=c.take("attention_bias", False), out_bias=True,
        ),
        "F": Spec("GatedMLP", d_ff=doubled // 2, activation="gelu_tanh", bias=True),
    }  # fmt: skip
    return Spec(
        "LanguageModel", vocab_size=c.size("vocab_size", 256000), d_model=width, norm_eps=c.take("rms_norm_eps", 1e-6), norm="rms_offset",
        residual_in_fp32=False, tie_embeddings=c.take("tie_word_embeddings", True), embedding_scale=embedding_scale(width),
        logit_cap=c.number("logits_soft_cap", 30.0), layers="".join(kind + "F" for kind in kinds),
        parts={name: part for name, part in parts.items() if name in (*kinds, "F")},
    )  # fmt: skip


def write(spec: Spec[Any]) -> dict[str, Any]:
    """Spec -> config.json."""
    a, pairs = spec.arguments, pairs_of(spec, ["GatedMLP"])
    mixers = [mixer for mixer, _ in pairs]
    unit = only((m for m in mixers if m.name != "Attention"), "RGLRU").arguments
    config = {
        "vocab_size": a["vocab_size"], "hidden_size": a["d_model"], "num_hidden_layers": len(pairs), "rms_norm_eps": a["norm_eps"],
        "tie_word_embeddings": a["tie_embeddings"], "hidden_activation": "gelu_pytorch_tanh", "logits_soft_cap": a["logit_cap"],
        "intermediate_size": 2 * only((second for _, second in pairs), "GatedMLP").arguments["d_ff"],
        "num_attention_heads": unit["num_heads"], "lru_width": unit["width"] or a["d_model"], "conv1d_width": unit["d_conv"],
        "block_types": _unit(["attention" if mixer.name == "Attention" else "recurrent" for mixer in mixers]),
    }  # fmt: skip
    if "attention" in config["block_types"]:
        part = only((m for m in mixers if m.name == "Attention"), "Attention").arguments
        size = a["d_model"] // unit["num_heads"]
        config.update(
            num_key_value_heads=part["num_kv_heads"] or part["num_heads"], attention_window_size=part["window"],
            attention_bias=part["bias"], rope_parameters={
                "rope_type": "default", "rope_theta": part["rotary_base"], "partial_rotary_factor": (part["rotary_dim"] or size) / size,
            },
        )  # fmt: skip
    return config


def _unit(words: list[str]) -> list[str]:
    """The shortest beginning that, repeated, gives them all."""
    return next(words[:n] for n in range(1, len(words) + 1) if words == (words[:n] * len(words))[: len(words)])


def keys(spec: Spec[Any]) -> list[Rename | Reshape]:
    """Names of tensors."""
    mixers = {"RGLRU": "temporal_block", "Attention": "temporal_block"}
    return [*ends(norm="model.final_norm"), *pair_names(spec, mixers, "mlp_block", ("temporal_pre_norm", "channel_pre_norm"))]
