"""What a run leaves behind: Markdown and JSON, rewritten after every section, and plots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]

FOLDER = Path(__file__).parent / "results"

READING = """Medians; `low` and `high` are the extremes of the repetitions. Participants run in processes of their own, take turns, and get
the same token ids; all but the transformer and the LSTM have the same random weights, and their logits are compared before anything is
timed (`error` is the distance in the 2-norm, relative). `of the limit` is the least time that this machine could need over the time it
took; [docs/performance.md](../../docs/performance.md) says how it is counted. Calls of more than six seconds are made three times;
an op's call of less than 20 ms is repeated for so long, and its mean is a repetition.
"""


def number(value: Any) -> str:
    """Three or four digits that say something."""
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    if value != 0 and abs(value) < 0.01:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}"


def table(rows: list[Row]) -> str:
    """Markdown: the columns of all rows, in the order in which they first appear; notes last."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if "note" in columns:
        columns.append(columns.pop(columns.index("note")))
    lines = [columns, ["---"] * len(columns)]
    lines += [[number(row.get(column)) for column in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def headline(results: dict[str, Any]) -> list[Row]:
    """One row a figure of a model: ours, its share of the limit, and how many times as fast it is as peers with the same weights."""
    rows = []
    for name, section in results["sections"].items():
        kind, _, rest = name.partition(".")
        if kind != "models":
            continue
        figures: dict[tuple[str, str], dict[str, Row]] = {}
        for row in section["rows"]:
            if "figure" not in row:
                continue  # the section has failed, and says so
            figures.setdefault((row["figure"], row["precision"]), {})[row["who"]] = row
        for (figure, precision), everyone in figures.items():
            ours = everyone["statescan"]
            line: Row = {"model": rest.rpartition(".")[0], "figure": figure, "precision": precision}
            unit = "seconds" if "seconds" in ours else "tokens/s"
            line["statescan"] = f"{number(ours[unit])} {'s' if unit == 'seconds' else 'tok/s'}"
            line["of the limit"] = ours.get("of the limit")
            for peer in ("transformers", "llama.cpp"):
                speed = everyone.get(peer, {}).get(unit)
                if speed is not None:
                    line[peer] = number(speed)
                    line[f"x {peer}"] = speed / ours[unit] if unit == "seconds" else ours[unit] / speed
            peak, other = ours.get("peak memory, MiB"), everyone.get("transformers", {}).get("peak memory, MiB")
            if peak and other:
                line["share of transformers' memory"] = peak / other
            rows.append(line)
    return rows


def summary(results: dict[str, Any]) -> str:
    """The table to look at first."""
    rows = headline(results)
    if rows:
        return table(rows)
    return "\n".join(f"{section['title']}\n\n{table(section['rows'])}\n" for section in results["sections"].values())


def write(name: str, results: dict[str, Any]) -> None:
    """name.json, name.md and the plots of the sections there are."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    about = ", ".join(f"{key}: {value}" for key, value in results["machine"].items())
    text = [f"# Benchmark\n\n{about}. Started {results['started']}, {results['minutes']} minutes.\n\n{READING}"]
    rows = headline(results)
    if rows:
        text.append(f"## Models in short\n\n{table(rows)}\n")
    text += [f"## {section['title']}\n\n{table(section['rows'])}\n" for section in results["sections"].values()]
    if results["rates"]:
        rates = dict(results["rates"])
        products = [{"rows x in x out": shape, "GFLOP/s": rate} for shape, rate in rates.pop("products, GFLOP/s").items()]
        text.append(f"## Rates of this machine in this run\n\n{table([rates])}\n" + (f"\n{table(products)}\n" if products else ""))
    (FOLDER / f"{name}.md").write_text("\n".join(text), encoding="utf-8")
    plots(name, results)


def plots(name: str, results: dict[str, Any]) -> None:
    """Time against the length; shares of the limit and ratios to llama.cpp. Without matplotlib there are none."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "statescan"  # the same file from the same figures
    if "who" in results["sections"].get("layers", {"rows": [{}]})["rows"][0]:
        _lengths(results["sections"]["layers"]["rows"]).savefig(FOLDER / f"{name}-lengths.svg", metadata={"Date": None})
    rows = [row for row in headline(results) if row.get("of the limit") is not None]
    if rows:
        _bars(rows).savefig(FOLDER / f"{name}-models.svg", metadata={"Date": None})


def _lengths(rows: list[Row]) -> Any:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for axis, what, low, high in (
        (axes[0], "forward, ms", "low", "high"),
        (axes[1], "with backward, ms", "backward low", "backward high"),
    ):
        for who in dict.fromkeys(row["who"] for row in rows):
            points = [row for row in rows if row["who"] == who and row["B"] == 1 and what in row]
            if points:
                line = axis.plot([row["L"] for row in points], [row[what] for row in points], marker="o", markersize=3, label=who)[0]
                bounds = [[row[edge] for row in points] for edge in (low, high)]
                axis.fill_between([row["L"] for row in points], *bounds, color=line.get_color(), alpha=0.15, linewidth=0)
        axis.set(xscale="log", yscale="log", xlabel="positions", title=what)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=8, frameon=False)
    figure.suptitle("One layer of width 256, batch 1, float32", fontsize=10)
    figure.tight_layout()
    plt.close(figure)
    return figure


def _bars(rows: list[Row]) -> Any:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 0.6 + 0.24 * len(rows)), sharey=True)
    labels = [f"{row['model']}, {row['precision']}: {row['figure']}" for row in rows]
    for axis, key, title in ((axes[0], "of the limit", "share of the limit"), (axes[1], "x llama.cpp", "times as fast as llama.cpp")):
        values = [row.get(key) for row in rows]
        axis.barh(range(len(rows)), [0 if value is None else value for value in values], color="#2b6cb0", height=0.7)
        for i, value in enumerate(values):
            axis.text(value or 0, i, f" {number(value) or 'absent'}", va="center", fontsize=7)
        axis.axvline(1, color="#a0aec0", linewidth=1)
        axis.set_title(title, fontsize=10)
        axis.set_yticks(range(len(rows)), labels, fontsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    figure.tight_layout()
    plt.close(figure)
    return figure
