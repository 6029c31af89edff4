"""Who takes part in a comparison: models of one task whose MLPs are as wide as makes the counts equal."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from statescan.data.tasks import Task
from statescan.heads import LanguageModel
from statescan.layers import GatedMLP
from statescan.procedures.floors import Recurrent
from statescan.registry import lookup
from statescan.spec import Spec, hints_of

_HEADS = ("num_heads",)
_HEAD_WIDTHS = ("head_dim", "headdim")
LSTM = "LSTM"
"""The name of the floor that is trained like a mixer."""
Part = Spec[Any] | type[Recurrent]


@dataclass(frozen=True)
class Contestant:
    """One or several mixers, a layer each in turn, and the MLP between them."""

    label: str
    mixers: tuple[Part, ...]
    d_ff: int
    parameters: int
    pretrained: bool = False
    """It denoises its training rows first."""


def line_up(mixers: Sequence[Any], task: Task | int, d_model: int, layers: int, heads: int, parameters: int = 0) -> list[Contestant]:
    """The contestants, with the MLP's width that brings each nearest to ``parameters`` (0: the largest's with an MLP of d_model)."""
    given = [tuple(_part(m) for m in (entry if isinstance(entry, (list, tuple)) else [entry])) for entry in mixers]
    filled = [tuple(_with_heads(spec, d_model, heads) for spec in specs) for specs in given]
    labels = ["+".join(_label(spec) for spec in specs) for specs in given]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f"{twice[0]} is listed twice: name each mixer once, or give it other arguments")

    def count(specs: tuple[Part, ...], d_ff: int) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in build(specs, task, d_model, layers, d_ff).parameters())

    target = parameters or max(count(specs, d_model) for specs in filled)
    contestants = []
    for label, specs in zip(labels, filled, strict=True):
        least = count(specs, 1)
        a_unit = count(specs, 2) - least
        d_ff = 1 + round((target - least) / a_unit)
        if d_ff < 1:
            raise ValueError(f"{label} has {least:,} parameters with the narrowest MLP: more than {target:,}; raise parameters")
        contestants.append(Contestant(label, specs, d_ff, least + (d_ff - 1) * a_unit))
    return contestants


def build(mixers: Sequence[Part], task: Task | int, d_model: int, layers: int, d_ff: int) -> Any:
    """The model: mixers in turn, an MLP of width ``d_ff`` behind each; for a task, or a number of ids."""
    pattern, parts = layout(mixers, layers, d_ff)
    return LanguageModel(task, d_model, pattern, parts) if isinstance(task, int) else task.model(d_model, pattern, parts)


def layout(mixers: Sequence[Part], layers: int, d_ff: int) -> tuple[str, dict[str, Any]]:
    """The backbone's pattern and parts."""
    parts: dict[str, Any] = {"F": functools.partial(GatedMLP, d_ff=d_ff)}
    pattern, written = "", False
    for i in range(layers):
        part = mixers[i % len(mixers)]
        if isinstance(part, Spec) and "first" in hints_of(lookup(part.name)) and "first" not in part.arguments:
            part, written = part.override({"first": not written}), True  # layers after it read what the first puts on the bus
        letter = next((k for k, known in parts.items() if known == part), "ABCDEGHIJKLMNOPQRSTUVWXYZ"[len(parts) - 1])
        parts[letter] = part
        pattern += letter + "F"
    return pattern, parts


def _part(entry: Any) -> Part:
    if isinstance(entry, str):
        return Recurrent if entry == LSTM else Spec(entry)
    return entry if isinstance(entry, Spec) else Spec.from_dict(entry)


def _with_heads(part: Part, d_model: int, heads: int) -> Part:
    if not isinstance(part, Spec):
        return part
    open_ = hints_of(lookup(part.name)).keys() - part.arguments.keys()
    number = part.arguments.get("num_heads", heads)
    sizes = {name: number for name in _HEADS if name in open_}
    sizes |= {name: d_model // number for name in _HEAD_WIDTHS if name in open_}
    return part.override(sizes)


def _label(part: Part) -> str:
    if not isinstance(part, Spec):
        return LSTM
    arguments = ", ".join(f"{key}={_label(value) if isinstance(value, Spec) else value}" for key, value in part.arguments.items())
    return f"{part.name}({arguments})" if arguments else part.name
