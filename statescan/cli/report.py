"""Plain tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their content; numbers to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    numeric = [all(row[i].replace(",", "").replace(".", "").isdigit() for row in rows) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        return "  ".join(f"{cell:>{w}}" if n else f"{cell:<{w}}" for cell, w, n in zip(row, widths, numeric, strict=True)).rstrip()

    return "\n".join([line(head), line(["-" * w for w in widths]), *(line(row) for row in rows)])


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """``name   value``, one a line."""
    width = max(len(name) for name, _ in pairs)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in pairs)
