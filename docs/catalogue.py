"""Write docs/catalogue.md from the registry: every model, what is exact, what deviates and why. `make docs`."""

from __future__ import annotations

from pathlib import Path

import statescan as ss
from statescan import registry
from statescan.protocols import CausalMixer, Mixer


def models() -> str:
    """One section a family, one row a model."""
    families = {entry.family.name: entry.family for entry in registry.models.values() if entry.family is not None}
    lines = []
    for family in families.values():
        lines += [f"## {family.title}", "", f"<{family.url}>", ""]
        lines += [f"Exact: {family.exact}" if family.exact else "", f"Deviates: {family.deviates}" if family.deviates else "", ""]
        lines += ["| model | parameters |", "|---|---|"]
        for name in ss.list_models(family=family.name):
            count = registry.models[name].parameters
            lines.append(f"| `{name}` | {count:,} |" if count else f"| `{name}` | |")
        lines.append("")
    return "\n".join(lines)


def mixers() -> str:
    """What each mixer declares about itself."""
    lines = ["## Mixers", "", "| mixer | what | state | elapsed time | double interval = two steps |", "|---|---|---|---|---|"]
    for name, part in sorted(registry.parts.items()):
        if issubclass(part, Mixer):
            what = (part.__doc__ or "").split("\n")[0].rstrip(":.")
            row = ["causal" if issubclass(part, CausalMixer) else "looks ahead", *("yes" if flag else "no" for flag in (part.has_time,))]
            holds = part.__dict__.get("holds_input", False)
            lines.append(f"| `{name}` | {what} | {row[0]} | {row[1]} | {'by discretisation' if isinstance(holds, property) else 'no'} |")
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    return f"# Catalogue\n\nGenerated from the registry by `make docs`.\n\n{mixers()}\n\n{models()}"


if __name__ == "__main__":
    Path(__file__).with_name("catalogue.md").write_text(page(), encoding="utf-8")
