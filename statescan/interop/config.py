"""Foreign config.json files, read strictly: whatever is not asked for, and not known to be harmless, is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from statescan.registry import nearest

_REQUIRED: Any = object()

HARMLESS = frozenset(
    {
        *("architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "name_or_path", "auto_map", "tokenizer_class"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "id2label", "label2id", "num_labels"),
        *("output_hidden_states", "output_attentions", "return_dict", "return_dict_in_generate", "use_cache", "chunk_size_feed_forward"),
        *("initializer_range", "problem_type", "torchscript", "use_bfloat16", "per_layer_config"),
        # How transformers generates, and how it was trained there:
        *("num_logits_to_keep", "max_position_embeddings", "attention_dropout", "hidden_dropout", "z_loss_coefficient"),
        *("output_router_logits", "router_aux_loss_coef"),
    }
)
"""Names that do not change what a read model computes: bookkeeping, initialisation, training, limits that are not enforced."""


class Reader:
    """One config.json. Each name is asked for once; :meth:`done` refuses the ones that nobody asked for."""

    def __init__(self, config: Mapping[str, Any], where: str, harmless: frozenset[str] = HARMLESS) -> None:
        self.config, self.where = config, where
        self.known = set(harmless)

    def error(self, text: str) -> ValueError:
        """To be raised: the text, behind the name of the file."""
        return ValueError(f"{self.where}: {text}")

    def take(self, name: str, default: Any = _REQUIRED) -> Any:
        """The value, lists as tuples; without a default the file must have it."""
        self.known.add(name)
        value = self.config.get(name, default)
        if value is _REQUIRED:
            raise self.error(f"{name} is missing")
        return tuple(value) if isinstance(value, list) else value

    def takes(self, names: Mapping[str, str]) -> dict[str, Any]:
        """Their name -> our name of what the file has, as ours -> value. What it lacks keeps our default: use it where both agree."""
        self.known |= names.keys()
        return {ours: self.take(theirs) for theirs, ours in names.items() if theirs in self.config}

    def size(self, name: str, default: Any = _REQUIRED) -> int:
        """A positive integer."""
        value = self.take(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(f"{name} must be a positive integer; got {value!r}")
        return value

    def number(self, name: str, default: Any = _REQUIRED) -> float:
        """A positive, finite number."""
        value = self.take(name, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
            raise self.error(f"{name} must be a positive number; got {value!r}")
        return value

    def fixed(self, name: str, *values: Any) -> None:
        """The name may be absent, or must have one of these values."""
        if name in self.config and self.take(name) not in values:
            raise self.error(f"{name} must be {' or '.join(map(repr, values))}; got {self.config[name]!r}, which is not supported")
        self.known.add(name)

    def derived(self, name: str, value: Any) -> None:
        """The name repeats what others say, if it is there."""
        if name in self.config and self.take(name) != value:
            raise self.error(f"{name}={self.config[name]!r} contradicts the other sizes, which make it {value}")
        self.known.add(name)

    def skip(self, *names: str) -> None:
        """These change nothing in this kind of model."""
        self.known |= set(names)

    def rotary(self, default_factor: float = 1.0, default_base: float = 10000.0) -> tuple[float, float]:
        """Base and part of a head's channels, of plain rotary positions in either spelling; a scaled kind is refused."""
        self.known |= {"rope_parameters", "rope_theta", "rope_scaling", "partial_rotary_factor"}
        given = self.config.get("rope_parameters") or {}
        if self.config.get("rope_scaling") is not None or given.get("rope_type", "default") != "default":
            raise self.error(f"rotary positions must be of type 'default'; got {self.config.get('rope_scaling') or given!r}")
        base = given.get("rope_theta", self.config.get("rope_theta", default_base))
        if not isinstance(base, (int, float)):
            raise self.error(f"rope_theta must be a number; got {base!r}")
        return float(base), float(given.get("partial_rotary_factor", self.config.get("partial_rotary_factor", default_factor)))

    def done(self) -> None:
        """Everything must have been asked for."""
        self.fixed("is_encoder_decoder", False)
        self.fixed("quantization_config", None)
        for name in self.config:
            if name not in self.known and not name.startswith("_"):
                raise self.error(f"{name}={self.config[name]!r} is an option that is not known here{nearest(name, self.known)}")


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
