"""``statescan models``: what ``create_model`` can build."""

from __future__ import annotations


def run(pattern: str = "*", *, family: str | None = None, tiny: bool = False) -> None:
    """List the models that can be created by name.

    Args:
        pattern: names that fit, such as "mamba2*"
        family: of this family only
        tiny: the small variants for tests too
    """
    from statescan.cli.report import table
    from statescan.registry import list_models, models, nearest

    names = list_models(pattern, family=family, tiny=tiny)
    if not names:
        raise ValueError(f"no model fits {pattern!r}{f' in family {family!r}' if family else ''}{nearest(pattern.strip('*?'), models)}")
    print(table(("model", "parameters", "family", "paper"), [_row(name) for name in names]))


def _row(name: str) -> tuple[str, str, str, str]:
    from statescan.registry import create_model, models

    entry = models[name]
    count = entry.parameters or sum(p.numel() for p in create_model(name, device="meta").parameters())
    family = entry.family
    return name, f"{count:,}", family.name if family else "", family.title if family else ""
