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
    """The families that introduced the model's mixers."""
    from statescan.protocols import Mixer
    from statescan.registry import models

    mixers = {type(module).__name__ for module in net.modules() if isinstance(module, Mixer)}
    families = {entry.family.name: entry.family for entry in models.values() if entry.family is not None}
    return [family for family in families.values() if mixers & set(family.introduces)]
