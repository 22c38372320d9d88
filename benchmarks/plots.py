"""Draws results: the time of each implementation, one figure for each suite, shape and dtype, beside the JSON files.

python -m benchmarks.plots benchmarks/results
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.measure import Row

COLOURS = {"smoothloss": "#4878a8", "peer": "#b8b8b8"}
FLOOR_COLOUR = "#b04a3a"
_DRAWN = {"suite", "shape", "dtype", "mode", "kind", "what", "ms", "ms_p20", "ms_p80"}  # of a row of a suite that ran
WIDTH = 8.4  # inches: at 100 dots an inch what a README shows without shrinking it


def figures(rows: list[Row]) -> dict[str, list[Row]]:
    """Return the rows that ran, by figure: shape and dtype, and the way of running where it is not the usual one."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if not row.keys() >= _DRAWN:
            continue
        parts = [row["shape"], row["dtype"], *([row["mode"]] if row["mode"] != "eager" else [])]
        found.setdefault("_".join(parts).replace(" ", "_").replace("_+_", "_and_"), []).append(row)
    return found


def draw(rows: list[Row], device: str, path: Path) -> None:
    """Draw one figure: a bar for each implementation with its 20th and 80th percentile, the floor as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    bars = [row for row in rows if row["kind"] != "floor"][::-1]
    floors = [row for row in rows if row["kind"] == "floor"]
    figure, axis = plt.subplots(figsize=(WIDTH, 1.1 + 0.27 * len(bars)))
    values = [row["ms"] for row in bars]
    spread = [
        [max(0.0, row["ms"] - row["ms_p20"]) for row in bars],
        [max(0.0, row["ms_p80"] - row["ms"]) for row in bars],
    ]
    drawn = axis.barh(
        [row["what"] for row in bars],
        values,
        color=[COLOURS[row["kind"]] for row in bars],
        xerr=spread,
        error_kw={"elinewidth": 0.8, "ecolor": "#555555"},
    )
    axis.bar_label(drawn, [_label(row) for row in bars], padding=4, fontsize=8)
    for row, style in zip(floors, ("--", ":", "-."), strict=False):
        axis.axvline(
            row["ms"], color=FLOOR_COLOUR, linewidth=1.0, linestyle=style, label=f"{row['what']}, {row['ms']:.3g} ms"
        )
    axis.set_xlim(0, 1.2 * max(row["ms_p80"] for row in rows))
    axis.set_ylim(-0.6, len(bars) - 0.4)
    axis.set_xlabel("ms")
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(_title(rows[0], device), fontsize=9, x=0.01, ha="left")
    if floors:
        axis.legend(
            fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.35, -0.5 / figure.get_figheight()), ncols=2
        )
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _label(row: Row) -> str:
    if "relative_to_mle" in row:
        return f"{row['ms']:.3g} ms, {row['relative_to_mle']:.2f} times MLE"
    return f"{row['ms']:.3g} ms"


def _title(row: Row, device: str) -> str:
    if row["suite"] == "rewards":
        sizes = f"{row['rows']} candidates, {row['hidden']} references each"
        return f"{row['mode']}, {row['shape']}: {sizes}, {device}"
    sizes = f"N = {row['rows']}, V = {row['classes']}"
    if row["suite"] != "logits":
        sizes += f", D = {row['hidden']}"
    mode = "forward + backward" if row["mode"] == "eager" else row["mode"]
    if row["mode"] == "graph":
        mode = "forward + backward, CUDA graph"
    return f"{row['suite']}, {row['shape']}: {sizes}, {row['dtype']}, {mode}, {device}"


def plot_file(path: Path) -> list[Path]:
    """Draw all figures of a file of results; none for files that do not come from a suite."""
    content: Any = json.loads(path.read_text())
    if not isinstance(content, dict) or "rows" not in content:
        return []
    written = []
    for name, rows in figures(content["rows"]).items():
        written.append(path.with_name(f"{path.stem}_{name}.png"))
        draw(rows, content["environment"]["device"], written[-1])
    return written


def main(arguments: list[str] | None = None) -> int:
    """Draw the figures of all JSON files in the given folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, default=[Path(__file__).resolve().parent / "results"])
    for folder in parser.parse_args(arguments).folders:
        for path in sorted(folder.glob("*.json")):
            for written in plot_file(path):
                print(written)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
