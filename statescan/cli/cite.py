"""``statescan cite``: BibTeX of what a model uses."""

from __future__ import annotations

from typing import Any


def run(model: str) -> None:
    """Print the BibTeX of the papers whose parts a model uses.

    Args:
        model: the name of a model, or a folder
    """
    from statescan.cli.inputs import find

    entry, net = find(model, build=False)
    families = _families(net)
    if entry is not None and entry.family is not None and entry.family not in families:
        families.insert(0, entry.family)
    if not families:
        raise ValueError(f"no paper is on record for the parts of {model}")
    print("\n\n".join(family.bibtex.strip() for family in families))


def _families(net: Any) -> list[Any]:
    """The families that brought in the model's mixers: for each, the first registered one that uses it."""
    from statescan.protocols import Mixer
    from statescan.registry import models

    mixers = {type(module).__name__ for module in net.modules() if isinstance(module, Mixer)}
    found: list[Any] = []
    for entry in models.values():
        brought = mixers & set(_names(entry.spec.to_dict()))
        if brought and entry.family is not None:
            mixers -= brought
            found.append(entry.family)
    return found


def _names(data: Any) -> list[str]:
    """Every name of a Spec, all the way down."""
    if isinstance(data, dict):
        return [n for key, value in data.items() for n in ([value] if key == "name" else _names(value))]
    return [n for value in data for n in _names(value)] if isinstance(data, list) else []
