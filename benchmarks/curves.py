"""Draws the learning curves of a table of runs: loss and metric of the validation part by epoch, a line for each row.

python -m benchmarks.curves benchmarks/results/multi30k_converged.json curves.png
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

Rows = Sequence[Mapping[str, Any]]
LOSS = "validation_loss"
NAMES = {"bleu": "BLEU", "cider": "CIDEr", "loss": "negative log-likelihood of a token"}


def curve(row: Mapping[str, Any], key: str) -> list[tuple[float, float]]:
    """Epochs and the mean of a validation's number over the runs of a row that came so far."""
    found: dict[float, list[float]] = defaultdict(list)
    for run in row.get("runs", ()):
        for point in run["curve"]:
            if point.get(key) is not None:
                found[point["epoch"]].append(point[key])
    return [(epoch, mean(values)) for epoch, values in sorted(found.items())]


def draw(rows: Rows, path: Path) -> bool:
    """Draw the curves of all rows that have some; False, and no file, where none has."""
    known = [row for row in rows if curve(row, LOSS)]
    if not known:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    metric = next(iter(known[0]["scores"]))
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    colours = plt.get_cmap("tab10" if len(known) <= 10 else "tab20")
    for axis, key in zip(axes, (LOSS, f"validation_{metric}"), strict=True):
        for number, row in enumerate(known):
            points = curve(row, key)
            axis.plot(*zip(*points, strict=True), color=colours(number), linewidth=1.3, label=row["label"])
        name = key.removeprefix("validation_")
        axis.set(xlabel="epoch", title=f"validation: {NAMES.get(name, name)}")
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return True


def main(words: list[str] | None = None) -> int:
    """Draw a file's curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="a table.json of `smoothloss reproduce`")
    parser.add_argument("figure", type=Path)
    options = parser.parse_args(words)
    if not draw(json.loads(options.results.read_text(encoding="utf-8"))["rows"], options.figure):
        parser.error(f"{options.results}: no row has curves; tables of earlier versions have none")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
