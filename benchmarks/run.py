"""Run the benchmarks and write Markdown and JSON to benchmarks/results/."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks import models, ops
from benchmarks.timing import machine


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    columns = list(rows[0])
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    for row in rows:
        lines.append(" | ".join(f"{row[c]:,.2f}" if isinstance(row[c], float) else str(row[c]) for c in columns))
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two minutes: fewer layers, shorter lengths")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sections = {
        "Models: mamba-130m shape, float32, tokens a second" + (" (4 of 24 layers)" if arguments.quick else ""): models.run(
            arguments.quick
        ),
        "selective_scan: B=1, E=1536, N=16, float32": ops.selective(arguments.quick),
        "Long sequences: selective_scan, B=1, E=128, N=16, chunks of 4096": ops.scaling(arguments.quick),
    }
    about = machine()
    text = "# Benchmark\n\n" + ", ".join(f"{k}: {v}" for k, v in about.items()) + "\n"
    text += "".join(f"\n## {title}\n\n{table(rows)}\n" for title, rows in sections.items())
    text += (
        "\nMedians. `ratio` is transformers' time over ours. The limit is the time that the matrix products alone need at the rate of a "
        "float32 product of a projection's shape (training: three forwards' worth), or, for decode, that reading the weights once a token "
        "needs; both rates are measured in the same run.\n"
    )
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    name = "quick" if arguments.quick else "full"
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    (folder / f"{name}.json").write_text(json.dumps({"machine": about, **sections}, indent=2) + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
