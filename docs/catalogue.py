"""Write docs/catalogue.md from the registry: every model, what is exact, what deviates and why. `make docs`."""

from __future__ import annotations

from pathlib import Path

import statescan as ss
from statescan import registry
from statescan.interop.dialects import DIALECTS
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
    lines = ["## Mixers", "", "| mixer | kind | elapsed time | a double interval is two steps |", "|---|---|---|---|"]
    for name, part in sorted(registry.parts.items()):
        if issubclass(part, Mixer):
            example = part(32, **part.examples[0]) if part.examples else part  # a reader of the bus stands in no layer alone
            row = ["causal" if issubclass(part, CausalMixer) else "looks ahead", _yes(example.has_time), _yes(example.holds_input)]
            lines.append(f"| `{name}` | {' | '.join(row)} |")
    return "\n".join(lines)


def checkpoints() -> str:
    """What interop reads and exports."""
    kinds = "\n".join(f"| `{kind}` | {dialect.architecture} |" for kind, dialect in sorted(DIALECTS.items()))
    head = "## Checkpoints of transformers\n\nRead by `from_pretrained`, written by `export_pretrained`."
    return f"{head}\n\n| model type | class |\n|---|---|\n{kinds}"


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"


def page() -> str:
    """The whole page."""
    return f"# Catalogue\n\nGenerated from the registry by `make docs`.\n\n{mixers()}\n\n{checkpoints()}\n\n{models()}"


if __name__ == "__main__":
    Path(__file__).with_name("catalogue.md").write_text(page(), encoding="utf-8")
