"""Models that see or hear too: of their files the language model is read, which has a config of its own inside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from statescan.interop.keys import Entry, LeftOut, Rename, Reshape


class Composite(NamedTuple):
    """One model type."""

    prefix: str
    """What the language model's tensors begin with, where alone they begin with ``model.``, or with nothing (``whole``)."""
    left_out: tuple[str, ...]
    """What the tensors of the other parts begin with."""
    whole: tuple[str, ...] = ()
    """The modules of a language model that stands behind the prefix with its head and all."""


COMPOSITES: dict[str, Composite] = {
    "qwen3_5": Composite("model.language_model.", ("model.visual.",)),
    "qwen3_5_moe": Composite("model.language_model.", ("model.visual.",)),
    "lfm2_vl": Composite("model.language_model.", ("model.vision_tower.", "model.multi_modal_projector.")),
    "nemotron_h_omni": Composite(
        "language_model.",
        ("vision_model.", "mlp1.", "sound_encoder.", "sound_projection."),
        whole=("backbone", "lm_head"),
    ),
}


def language_model(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The config of the language model inside: the rest of the file says how the other parts are made and joined to it."""
    inner = config.get("text_config") or config.get("llm_config")  # Nemotron's first files say llm_config
    if not isinstance(inner, Mapping) or "model_type" not in inner:
        raise ValueError(f"{where}: a {config['model_type']} must have a text_config with a model_type; got {inner!r}")
    if config.get("quantization_config") is not None:
        raise ValueError(f"{where}: quantization_config must be None; got {config['quantization_config']!r}, which is not supported")
    tied = {model.get("tie_word_embeddings") for model in (config, inner)} - {None}
    if len(tied) > 1:
        raise ValueError(f"{where}: tie_word_embeddings and that of text_config contradict each other")
    return {**inner, "tie_word_embeddings": tied.pop()} if tied else dict(inner)


def prefixed(keys: Iterable[Entry], composite: Composite) -> list[Entry]:
    """The names of the language model's tensors, as they stand among those of the other parts."""

    def inside(name: str) -> str:
        if composite.whole:
            return composite.prefix + name
        return composite.prefix + name.removeprefix("model.") if name.startswith("model.") else name

    names: list[Entry] = [LeftOut(prefix) for prefix in composite.left_out]
    names += [Rename(composite.prefix + module, module) for module in composite.whole]
    for entry in keys:
        if isinstance(entry, Reshape):
            names.append(entry._replace(theirs=tuple(map(inside, entry.theirs))))
        elif isinstance(entry, Rename):
            names.append(Rename(inside(entry.theirs), entry.ours))
        else:
            names.append(LeftOut(inside(entry.theirs)))
    return names
