"""The original project's config.json (mamba_ssm) as a Spec, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from statescan.interop.config import Reader
from statescan.interop.dialects.anatomy import layers_of, lost, only
from statescan.registry import lookup, nearest
from statescan.spec import Spec, defaults

_MODEL = {"residual_in_fp32": "residual_in_fp32", "tie_embeddings": "tie_embeddings"}
_PARTS = {"Mamba1": "Mamba", "Mamba2": "Mamba2"}
_KERNEL_OPTIONS = {"use_fast_path", "use_mem_eff_path", "layer_idx", "sequence_parallel"}
"""Arguments of the original mixers that choose a kernel for the same values."""
_UNKNOWN = {"Mamba": {"norm_eps", "bcdt_norm", "share", "A_init_range"}, "Mamba2": {"norm_eps", "share", "multipliers"}}
"""Arguments of ours that the original mixers do not have."""


def read_original(config: Mapping[str, Any], where: str) -> Spec[Any]:
    """The Spec of a model of the original project."""
    c = Reader(config, where, harmless=frozenset({"fused_add_norm", "attn_cfg"}))
    c.fixed("attn_layer_idx", (), None)
    c.fixed("d_intermediate", 0, None)
    c.fixed("rms_norm", True)
    width, depth, vocabulary = c.size("d_model"), c.size("n_layer"), c.size("vocab_size")
    multiple = c.size("pad_vocab_size_multiple", 8)
    arguments = c.take("ssm_cfg", None) or {}
    if not isinstance(arguments, Mapping):
        raise c.error(f"ssm_cfg must be an object; got {arguments!r}")
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}
    layer = arguments.pop("layer", "Mamba1")
    if not isinstance(layer, str) or layer not in _PARTS:
        raise c.error(f"ssm_cfg.layer {layer!r} cannot be read{nearest(str(layer), _PARTS)}")
    if layer == "Mamba2":
        arguments.setdefault("headdim", 64)
    mixer = {name: value for name, value in arguments.items() if name not in _KERNEL_OPTIONS}
    model = c.takes(_MODEL)
    c.done()
    try:
        return Spec(
            "LanguageModel", vocab_size=math.ceil(vocabulary / multiple) * multiple, d_model=width, layers=f"M*{depth}",
            parts={"M": Spec(_PARTS[layer], **mixer)}, **model,
        )  # fmt: skip
    except ValueError as error:
        raise c.error(str(error)) from error


def write_original(model: Any) -> dict[str, Any]:
    """The config.json of a model, for the original project to read."""
    spec = Spec.of(model).resolved()
    if spec.name != "LanguageModel":
        raise ValueError(f"only a LanguageModel can be exported to mamba_ssm; got a {spec.name}")
    layers = layers_of(spec)
    try:
        mixer = only(layers, "Mamba", "Mamba2")
    except ValueError as error:
        raise ValueError(f"mamba_ssm knows stacks of Mamba or of Mamba2 only: {error}") from error
    ours = defaults(lookup(mixer.name))
    arguments = {name: value for name, value in mixer.arguments.items() if value != ours[name] and name not in _UNKNOWN[mixer.name]}
    if mixer.name == "Mamba2":
        arguments["headdim"] = model.backbone.layers[0].mixer.headdim
    vocabulary = spec.arguments["vocab_size"]
    config = {
        "d_model": spec.arguments["d_model"],
        "d_intermediate": 0,
        "n_layer": len(layers),
        "vocab_size": vocabulary,
        "ssm_cfg": {"layer": next(theirs for theirs, name in _PARTS.items() if name == mixer.name), **arguments},
        "attn_layer_idx": [],
        "attn_cfg": {},
        "rms_norm": True,
        "residual_in_fp32": spec.arguments["residual_in_fp32"],
        "fused_add_norm": True,
        "pad_vocab_size_multiple": next(m for m in (16, 8, 1) if vocabulary % m == 0),
        "tie_embeddings": spec.arguments["tie_embeddings"],
    }
    missing = lost(spec, read_original(config, "config.json").resolved())
    if "learnable_init_states" in arguments:
        missing.append("Mamba2 with learnable_init_states=True")
    if missing:
        raise ValueError(f"mamba_ssm has no {', no '.join(missing)}: save it natively with save_pretrained")
    return config
