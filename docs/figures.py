"""Draw docs/speed.svg from benchmarks/results/full.json (which `make bench` writes)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
MODEL = "mamba-130m"
COLOURS = {"statescan": "#2b6cb0", "llama.cpp": "#dd8452", "transformers": "#a0aec0"}
PANELS = (
    ("float32", "prefill of 512 tokens"),
    ("float32", "decode, B=1"),
    ("int4", "decode, B=1"),
    ("training", "training step, L=256"),
)


def main() -> None:
    """One panel a task: tokens a second of the three, with the spread of the repetitions."""
    matplotlib.rcParams["svg.hashsalt"] = "statescan"  # the same file from the same figures
    results = json.loads((HERE.parent / "benchmarks/results/full.json").read_text(encoding="utf-8"))
    figure, axes = plt.subplots(1, len(PANELS), figsize=(11, 2.9))
    for axis, (section, task) in zip(axes, PANELS, strict=True):
        rows = results["sections"][f"models.{MODEL}.{section}"]["rows"]
        everyone = {row["who"]: row for row in rows if row["figure"] == task and row["who"] in COLOURS}
        panel(axis, everyone, f"{task}\n{everyone['statescan']['precision']}")
    machine = results["machine"]
    figure.supxlabel(
        f"tokens a second; {MODEL} shape, {machine['threads']} threads, {machine['cpu']} ({machine['capability']})", fontsize=9
    )
    figure.tight_layout()
    figure.savefig(HERE / "speed.svg", metadata={"Date": None})


def panel(axis: Any, everyone: dict[str, dict[str, Any]], title: str) -> None:
    """Bars; whoever is absent keeps a place and no bar."""
    most = max(row.get("tokens/s", 0) for row in everyone.values())
    for i, who in enumerate(COLOURS):
        row = everyone.get(who, {})
        value = row.get("tokens/s")
        if value is None:
            axis.text(0, i, "  none", va="center", fontsize=9, color="#718096")
            continue
        axis.barh(i, value, xerr=[[value - row["low"]], [row["high"] - value]], color=COLOURS[who], height=0.6, capsize=3)
        axis.text(row["high"], i, f"  {value:,.0f}", va="center", fontsize=10)
    axis.set_yticks(range(len(COLOURS)), COLOURS)
    axis.set_ylim(len(COLOURS) - 0.5, -0.5)  # whoever is absent has a place too
    axis.set_xlim(0, most * 1.5)
    axis.set_title(title, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
