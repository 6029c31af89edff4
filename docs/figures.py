"""Draw docs/speed.svg from benchmarks/results/full.json (which `make bench` writes)."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent


def main() -> None:
    """One panel a task: tokens a second of both, with the spread of the repetitions."""
    matplotlib.rcParams["svg.hashsalt"] = "statescan"  # the same file from the same figures
    results = json.loads((HERE.parent / "benchmarks/results/full.json").read_text(encoding="utf-8"))
    title = next(key for key in results if key.startswith("Models"))
    rows = results[title]
    figure, axes = plt.subplots(1, len(rows), figsize=(9, 2.9))
    for axis, row in zip(axes, rows, strict=True):
        for i, (who, colour) in enumerate((("statescan", "#2b6cb0"), ("transformers", "#a0aec0"))):
            low, high = (float(v) for v in row[f"{who} spread"].split(".."))
            spread = [[max(row[who] - low, 0)], [max(high - row[who], 0)]]
            axis.barh(i, row[who], xerr=spread, color=colour, height=0.6, capsize=3)
            axis.text(row[who], i, f"  {row[who]:,.0f}", va="center", fontsize=10)
        axis.set_yticks([0, 1], ["statescan", "transformers"] if axis is axes[0] else ["", ""])
        axis.invert_yaxis()
        axis.set_xlim(0, max(row["statescan"], row["transformers"]) * 1.35)
        axis.set_title(f"{row['what']}\n{row['ratio']:.1f} times faster", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    machine = results["machine"]
    figure.supxlabel(f"tokens a second; mamba-130m shape, float32, {machine['threads']} threads, {machine['cpu']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(HERE / "speed.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
