"""Falcon-Mamba: Mamba with norms of dt, B and C. Falcon-H1: Mamba-2 and attention side by side, then a gated MLP, fixed multipliers."""

from __future__ import annotations

import math
from typing import Any

from statescan.interop.config import Reader
from statescan.interop.dialects import mamba
from statescan.interop.dialects.anatomy import Unlike, ends, expand_to, layers_of, only, pairs_of
from statescan.interop.dialects.bamba import attention_names, mamba2_names
from statescan.interop.keys import Rename, Reshape
from statescan.spec import Spec

_SIDES = ("mamba", "self_attn")
"""What the two parts of a Falcon-H1 mixer are called, there and here."""


def read_mamba(c: Reader) -> Spec[Any]:
    """config.json -> Spec."""
    arguments = c.takes(mamba.MAMBA)
    width = c.size("hidden_size")
    # The published file says expand=16, and a width that is twice the model's: the width counts.
    if "intermediate_size" in c.config:
        arguments["expand"] = expand_to(c.size("intermediate_size"), width)
    mixer: Spec[Any] = Spec("Mamba", bcdt_norm="rms", norm_eps=c.number("mixer_rms_eps", 1e-6), **arguments)
    return mamba.model(c, mixer, {"tie_embeddings": True})


def write_mamba(spec: Spec[Any]) -> dict[str, Any]:
    """Spec -> config.json."""
    mixer = only(layers_of(spec), "Mamba").arguments
    if mixer["bcdt_norm"] != "rms":
        raise Unlike("its Mamba layers have no weightless norms of dt, B and C")
    return {**mamba.write_mamba(spec), "mixer_rms_eps": mixer["norm_eps"]}


def read_h1(c: Reader) -> Spec[Any]:
    """config.json -> Spec."""
    width, depth, eps = c.size("hidden_size"), c.size("num_hidden_layers"), c.number("rms_norm_eps", 1e-5)
    c.fixed("hidden_act", "silu")
    c.fixed("mamba_use_mlp", True)
    c.fixed("attn_layer_indices", None)
    c.skip("mlp_expansion_factor")  # intermediate_size says it
    inputs = {"mamba": c.take("ssm_in_multiplier", 1.0), "self_attn": c.take("attention_in_multiplier", 1.0)}
    outputs = {"mamba": c.take("ssm_out_multiplier", 1.0), "self_attn": c.take("attention_out_multiplier", 1.0)}
    mixer: Spec[Any] = Spec(
        "Parallel", parts=dict(zip(_SIDES, (_mamba2(c, width, eps), _attention(c, width)), strict=True)), inputs=_unless_one(inputs),
        outputs=_unless_one(outputs),
    )  # fmt: skip
    mlp: Spec[Any] = Spec(
        "GatedMLP", d_ff=c.size("intermediate_size", 14336), bias=c.take("mlp_bias", False),
        multipliers=c.take("mlp_multipliers", None) or (1.0, 1.0),
    )  # fmt: skip
    return Spec(
        "LanguageModel", vocab_size=c.size("vocab_size", 128000), d_model=width, norm_eps=eps, residual_in_fp32=False,
        tie_embeddings=c.take("tie_word_embeddings", False), embedding_scale=c.take("embedding_multiplier", 1.0),
        logit_scale=c.take("lm_head_multiplier", 1.0), layers=f"(PF)*{depth}", parts={"P": mixer, "F": mlp},
    )  # fmt: skip


def _unless_one(multipliers: dict[str, float]) -> dict[str, float] | None:
    return {name: value for name, value in multipliers.items() if value != 1} or None


def _mamba2(c: Reader, width: int, eps: float) -> Spec[Any]:
    expand, heads = c.size("mamba_expand", 2), c.size("mamba_n_heads", 128)
    inner = c.take("mamba_d_ssm", 1024)
    inner = expand * width if inner is None else inner
    size, bias = c.take("mamba_d_head", "auto"), c.take("mamba_proj_bias", False)
    c.derived("mamba_d_head", "auto" if size == "auto" else inner // heads)
    if c.take("projectors_bias", False) != bias:
        raise c.error(f"projectors_bias must be mamba_proj_bias, which is {bias}: one bias for both projections is what is supported")
    factors = c.take("ssm_multipliers", None) or (1.0,) * 5
    return Spec(
        "Mamba2", d_state=c.size("mamba_d_state", 256), d_conv=c.size("mamba_d_conv", 4), expand=expand_to(inner, width),
        headdim=inner // heads, ngroups=c.size("mamba_n_groups", 1), bias=bias, conv_bias=c.take("mamba_conv_bias", True),
        rmsnorm=c.take("mamba_rms_norm", False), norm_before_gate=c.take("mamba_norm_before_gate", True), norm_eps=eps,
        dt_limit=c.take("time_step_limit", (0.0, math.inf)), chunk_size=c.size("mamba_chunk_size", 256),
        multipliers=None if all(factor == 1 for factor in factors) else factors,
    )  # fmt: skip


def _attention(c: Reader, width: int) -> Spec[Any]:
    heads, bias = c.size("num_attention_heads", 32), c.take("attention_bias", False)
    size, key = c.take("head_dim", None) or width // heads, c.take("key_multiplier", 1.0)
    base, part = c.rotary()
    if part != 1:
        raise c.error(f"partial_rotary_factor must be 1; got {part}")
    return Spec(
        "Attention", num_heads=heads, num_kv_heads=c.take("num_key_value_heads", 8) or heads, head_dim=size, rotary_base=base, bias=bias,
        out_bias=bias, scale=None if key == 1 else key * size**-0.5,
    )  # fmt: skip


def write_h1(spec: Spec[Any]) -> dict[str, Any]:
    """Spec -> config.json."""
    a, pairs = spec.arguments, pairs_of(spec, ["GatedMLP"])
    both = only((mixer for mixer, _ in pairs), "Parallel").arguments
    if tuple(both["parts"]) != _SIDES:
        raise Unlike(f"the parts side by side are {list(both['parts'])}, not {list(_SIDES)}")
    left, right = (only([both["parts"][name]], kind) for name, kind in zip(_SIDES, ("Mamba2", "Attention"), strict=True))
    mlp = only((second for _, second in pairs), "GatedMLP").arguments
    inputs, outputs = both["inputs"] or {}, both["outputs"] or {}
    m, scale, width = left.arguments, right.arguments["scale"], a["d_model"]
    size = right.arguments["head_dim"] or width // right.arguments["num_heads"]
    inner = int(m["expand"] * width)
    rotary = attention_names(right)
    del rotary["rope_parameters"]["partial_rotary_factor"]
    return {
        "vocab_size": a["vocab_size"], "hidden_size": width, "num_hidden_layers": len(pairs), "rms_norm_eps": a["norm_eps"],
        "tie_word_embeddings": a["tie_embeddings"], "hidden_act": "silu", "embedding_multiplier": a["embedding_scale"],
        "lm_head_multiplier": a["logit_scale"], "intermediate_size": mlp["d_ff"], "mlp_bias": mlp["bias"],
        "mlp_multipliers": list(mlp["multipliers"]), **mamba2_names(left, width), "mamba_expand": 2, "mamba_d_ssm": inner,
        "projectors_bias": m["bias"], "mamba_rms_norm": m["rmsnorm"], "mamba_norm_before_gate": m["norm_before_gate"],
        "ssm_multipliers": list(m["multipliers"] or (1.0,) * 5), "ssm_in_multiplier": inputs.get("mamba", 1.0),
        "ssm_out_multiplier": outputs.get("mamba", 1.0), "attention_in_multiplier": inputs.get("self_attn", 1.0),
        "attention_out_multiplier": outputs.get("self_attn", 1.0), "key_multiplier": 1.0 if scale is None else _key(scale, size), **rotary,
        **({} if size * right.arguments["num_heads"] == width else {"head_dim": size}),
    }  # fmt: skip


def _key(scale: float, size: int) -> float:
    """The shortest number that a head of this size makes this scale of: the quotient, or the next one to it."""
    near = scale / size**-0.5
    numbers = [near, *(math.nextafter(near, end) for end in (-math.inf, math.inf))]
    return min((n for n in numbers if n * size**-0.5 == scale), key=lambda n: len(repr(n)), default=near)


def keys_h1(spec: Spec[Any]) -> list[Rename | Reshape]:
    """Names of tensors."""
    names = ends(norm="model.final_layernorm")
    for i in range(len(layers_of(spec)) // 2):
        theirs, first, then = f"model.layers.{i}", f"backbone.layers.{2 * i}", f"backbone.layers.{2 * i + 1}"
        names += [Rename(f"{theirs}.input_layernorm", f"{first}.norm"), Rename(f"{theirs}.pre_ff_layernorm", f"{then}.norm")]
        names += [Rename(f"{theirs}.{side}", f"{first}.mixer.{side}") for side in _SIDES]
        names.append(Rename(f"{theirs}.feed_forward", f"{then}.mixer"))
    return [*names]
