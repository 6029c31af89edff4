"""Foreign config.json files as Specs, and back: tables of names, and nothing that is read is ignored unless a table says that it may be.

Two dialects: transformers' ``MambaConfig`` and ``Mamba2Config``, and the original project's ``MambaConfig``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from statescan.backbones.flat import spell
from statescan.registry import lookup, nearest
from statescan.spec import Spec, defaults


class Dialect(NamedTuple):
    """How transformers spells one kind of model."""

    part: str
    """The registered mixer."""
    architecture: str
    mixer: Mapping[str, str]
    """Their name -> our argument of the mixer."""
    absent: Mapping[str, Any]
    """What a name left out of the file stands for there, where that is not our default."""


_MODEL = {
    "vocab_size": "vocab_size",
    "hidden_size": "d_model",
    "layer_norm_epsilon": "norm_eps",
    "tie_word_embeddings": "tie_embeddings",
    "residual_in_fp32": "residual_in_fp32",
}
_MIXER = {
    "state_size": "d_state",
    "conv_kernel": "d_conv",
    "expand": "expand",
    "use_bias": "bias",
    "use_conv_bias": "conv_bias",
    "time_step_min": "dt_min",
    "time_step_max": "dt_max",
    "time_step_floor": "dt_init_floor",
}
TRANSFORMERS = {
    "mamba": Dialect(
        "Mamba",
        "MambaForCausalLM",
        {**_MIXER, "time_step_rank": "dt_rank", "time_step_init_scheme": "dt_init", "time_step_scale": "dt_scale"},
        {"tie_word_embeddings": True},
    ),
    "mamba2": Dialect(
        "Mamba2",
        "Mamba2ForCausalLM",
        {
            **_MIXER,
            "head_dim": "headdim",
            "n_groups": "ngroups",
            "time_step_limit": "dt_limit",
            "chunk_size": "chunk_size",
            "layer_norm_epsilon": "norm_eps",
        },
        {"tie_word_embeddings": False, "head_dim": 64, "n_groups": 8},
    ),
}

_FIXED = {"hidden_act": "silu", "rms_norm": True, "ssm_cfg": {}, "is_encoder_decoder": False, "quantization_config": None}
"""Names that may stand in a file, but only with this value."""

_HARMLESS = {
    *("architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "name_or_path", "auto_map", "tokenizer_class"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "id2label", "label2id", "num_labels"),
    *("output_hidden_states", "output_attentions", "return_dict", "return_dict_in_generate", "use_cache", "chunk_size_feed_forward"),
    *("initializer_range", "rescale_prenorm_residual", "problem_type", "torchscript", "use_bfloat16", "per_layer_config"),
    # Which kernel computes the same thing, and in the first files what the original project called its sizes:
    *("use_mambapy", "use_associative_scan", "fused_add_norm", "pad_vocab_size_multiple", "tie_embeddings"),
    # Mamba-2 files carry these; the model they describe uses neither (it gates first, and knows no low-rank step):
    *("norm_before_gate", "time_step_rank", "time_step_init_scheme", "time_step_scale"),
}
"""Names that do not change what a read model computes: bookkeeping, initialisation, choice of kernel."""

_INITIAL = ("dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "A_init_range", "conv_init", "chunk_size")
"""Our arguments that shape fresh weights or speed, not what given weights compute: an export may lose them."""


def read_transformers(config: Mapping[str, Any], where: str) -> Spec[Any]:
    """The Spec of a model that transformers wrote."""
    kind = config["model_type"]
    if not isinstance(kind, str) or kind not in TRANSFORMERS:
        raise ValueError(f"{where}: model_type {kind!r} cannot be read{nearest(str(kind), TRANSFORMERS)}")
    dialect = TRANSFORMERS[kind]
    _numbers(config, where, ("vocab_size", "hidden_size", "num_hidden_layers"), ("expand", "head_dim"))
    known = {*_MODEL, *dialect.mixer, *_FIXED, *_HARMLESS, *_sizes(config), "num_hidden_layers"}
    for name in config:
        if name not in known and not name.startswith("_"):
            raise ValueError(f"{where}: {name}={config[name]!r} is an option that is not known here{nearest(name, known)}")
    for name, value in _FIXED.items():
        if config.get(name, value) != value:
            raise ValueError(f"{where}: {name} must be {value!r}; got {config[name]!r}, which is not supported")
    for name, value in _sizes(config).items():
        if name in config and config[name] != value:
            raise ValueError(f"{where}: {name}={config[name]!r} contradicts the other sizes, which make it {value}")
    given = {**dialect.absent, **config}
    mixer = {ours: _value(given[theirs]) for theirs, ours in dialect.mixer.items() if theirs in given}
    model = {ours: given[theirs] for theirs, ours in _MODEL.items() if theirs in given}
    return _spec(where, dialect.part, mixer, config["num_hidden_layers"], model)


def write_transformers(model: Any) -> dict[str, Any]:
    """The config.json of a model, for transformers to read."""
    spec, mixer, depth = _anatomy(model, "transformers")
    kind = next(kind for kind, dialect in TRANSFORMERS.items() if dialect.part == mixer.name)
    dialect = TRANSFORMERS[kind]
    free = {*dialect.mixer.values(), *_INITIAL}
    _only_defaults(mixer, free, "transformers")
    if mixer.arguments.get("norm_eps", spec.arguments["norm_eps"]) != spec.arguments["norm_eps"]:
        raise ValueError(
            "transformers has one epsilon for all norms, but norm_eps of model and mixer differ: export as mamba_ssm or natively"
        )
    first = model.backbone.layers[0].mixer
    config = {
        "architectures": [dialect.architecture],
        "model_type": kind,
        "num_hidden_layers": depth,
        "hidden_act": "silu",
        **{theirs: spec.arguments[ours] for theirs, ours in _MODEL.items()},
        **{theirs: mixer.arguments[ours] for theirs, ours in dialect.mixer.items()},
    }
    if kind == "mamba":
        config["intermediate_size"], config["time_step_rank"] = first.d_inner, first.dt_rank
    else:
        config["head_dim"], config["num_heads"] = first.headdim, first.nheads
    expand = config["expand"]
    if not float(expand).is_integer():
        raise ValueError(f"transformers takes whole numbers for expand; got {expand}")
    return {**config, "expand": int(expand)}


_ORIGINAL = {"d_model": "d_model", "residual_in_fp32": "residual_in_fp32", "tie_embeddings": "tie_embeddings"}
_ORIGINAL_FIXED = {"d_intermediate": 0, "attn_layer_idx": [], "rms_norm": True}
_ORIGINAL_HARMLESS = {"fused_add_norm", "attn_cfg"}
_ORIGINAL_PARTS = {"Mamba1": "Mamba", "Mamba2": "Mamba2"}
_KERNEL_OPTIONS = {"use_fast_path", "use_mem_eff_path", "layer_idx", "sequence_parallel"}
"""Arguments of the original mixers that choose a kernel for the same values."""


def read_original(config: Mapping[str, Any], where: str) -> Spec[Any]:
    """The Spec of a model of the original project."""
    known = {*_ORIGINAL, *_ORIGINAL_FIXED, *_ORIGINAL_HARMLESS, "n_layer", "vocab_size", "pad_vocab_size_multiple", "ssm_cfg"}
    for name in config:
        if name not in known:
            raise ValueError(f"{where}: {name}={config[name]!r} is an option that is not known here{nearest(name, known)}")
    for name, value in _ORIGINAL_FIXED.items():
        if (config.get(name) or value) != value or config.get(name, value) is False:
            raise ValueError(f"{where}: {name} must be {value!r}; got {config[name]!r}, which is not supported")
    _numbers(config, where, ("d_model", "n_layer", "vocab_size"), ("pad_vocab_size_multiple",))
    arguments = config.get("ssm_cfg") or {}
    if not isinstance(arguments, Mapping):
        raise ValueError(f"{where}: ssm_cfg must be an object; got {arguments!r}")
    arguments = dict(arguments)
    layer = arguments.pop("layer", "Mamba1")
    if not isinstance(layer, str) or layer not in _ORIGINAL_PARTS:
        raise ValueError(f"{where}: ssm_cfg.layer {layer!r} cannot be read{nearest(str(layer), _ORIGINAL_PARTS)}")
    if layer == "Mamba2":
        arguments.setdefault("headdim", 64)
    mixer = {name: _value(value) for name, value in arguments.items() if name not in _KERNEL_OPTIONS}
    model = {ours: config[theirs] for theirs, ours in _ORIGINAL.items() if theirs in config}
    multiple = config.get("pad_vocab_size_multiple", 8)
    model["vocab_size"] = math.ceil(config["vocab_size"] / multiple) * multiple
    return _spec(where, _ORIGINAL_PARTS[layer], mixer, config["n_layer"], model)


def write_original(model: Any) -> dict[str, Any]:
    """The config.json of a model, for the original project to read."""
    spec, mixer, depth = _anatomy(model, "mamba_ssm")
    _only_defaults(mixer, set(mixer.arguments) - {"norm_eps", "learnable_init_states"}, "mamba_ssm")
    if spec.arguments["norm_eps"] != 1e-5:
        raise ValueError(f"mamba_ssm fixes norm_eps at 1e-5; got {spec.arguments['norm_eps']}")
    ours = defaults(lookup(mixer.name))
    arguments = {name: value for name, value in mixer.arguments.items() if name in ours and value != ours[name]}
    if mixer.name == "Mamba2" and model.backbone.layers[0].mixer.headdim != 64:
        arguments["headdim"] = model.backbone.layers[0].mixer.headdim
    else:
        arguments.pop("headdim", None)
    vocabulary = spec.arguments["vocab_size"]
    layer = next(theirs for theirs, name in _ORIGINAL_PARTS.items() if name == mixer.name)
    return {
        "d_model": spec.arguments["d_model"],
        "d_intermediate": 0,
        "n_layer": depth,
        "vocab_size": vocabulary,
        "ssm_cfg": {"layer": layer, **arguments},
        "attn_layer_idx": [],
        "attn_cfg": {},
        "rms_norm": True,
        "residual_in_fp32": spec.arguments["residual_in_fp32"],
        "fused_add_norm": True,
        "pad_vocab_size_multiple": next(m for m in (16, 8, 1) if vocabulary % m == 0),
        "tie_embeddings": spec.arguments["tie_embeddings"],
    }


def plain_floats(value: Any) -> Any:
    """JSON has no infinity: ``{"__float__": "Infinity"}`` (as transformers writes it) back to a number, all the way down."""
    if isinstance(value, dict):
        if value.keys() == {"__float__"}:
            return float(value["__float__"])
        return {k: plain_floats(v) for k, v in value.items()}
    return [plain_floats(v) for v in value] if isinstance(value, list) else value


def tagged_floats(value: Any) -> Any:
    """The inverse of :func:`plain_floats`."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"__float__": "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, Mapping):
        return {k: tagged_floats(v) for k, v in value.items()}
    return [tagged_floats(v) for v in value] if isinstance(value, (list, tuple)) else value


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Names that repeat what others say, with what they must then be."""
    width, expand = config.get("hidden_size", 0), config.get("expand", 2)
    heads = {"num_heads": int(expand * width) / config.get("head_dim", 64)} if config["model_type"] == "mamba2" else {}
    inner = int(expand * width)
    depth = config.get("num_hidden_layers")
    return {"intermediate_size": inner, "d_inner": inner, "d_model": width, "n_layer": depth, **heads}


def _numbers(config: Mapping[str, Any], where: str, required: tuple[str, ...], optional: tuple[str, ...]) -> None:
    """Sizes that are calculated with: positive, and whole where they must be there."""
    for name in (*required, *optional):
        value = config.get(name, None if name in required else 1)
        kinds = (int,) if name in required else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool) or not 0 < value < math.inf:
            raise ValueError(f"{where}: {name} must be a positive {'integer' if name in required else 'number'}; got {value!r}")


def _value(value: Any) -> Any:
    """Their lists are our tuples."""
    return tuple(value) if isinstance(value, list) else value


def _spec(where: str, part: str, mixer: Mapping[str, Any], depth: int, model: Mapping[str, Any]) -> Spec[Any]:
    try:
        return Spec("LanguageModel", layers=f"M*{depth}", parts={"M": Spec(part, **mixer)}, **model)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _anatomy(model: Any, target: str) -> tuple[Spec[Any], Spec[Any], int]:
    """A language model's Spec, that of its one kind of mixer, and the number of layers."""
    spec = Spec.of(model).resolved()
    if spec.name != "LanguageModel":
        raise ValueError(f"only a LanguageModel can be exported to {target}; got a {spec.name}")
    parts = spec.arguments["parts"] or {"M": Spec("Mamba").resolved()}
    names = spell(spec.arguments["layers"], list(parts))
    mixers = [parts[name] for name in sorted(set(names))]
    if len(mixers) != 1 or getattr(mixers[0], "name", None) not in ("Mamba", "Mamba2"):
        raise ValueError(f"{target} knows stacks of Mamba or of Mamba2 only; layers={spec.arguments['layers']!r} of {dict(parts)!r}")
    return spec, mixers[0], len(names)


def _only_defaults(mixer: Spec[Any], free: set[str], target: str) -> None:
    ordinary = defaults(lookup(mixer.name))
    for name, value in mixer.arguments.items():
        if name not in free and value != ordinary[name]:
            raise ValueError(f"{target} has no {mixer.name} with {name}={value!r}: save it natively with save_pretrained")
