"""Time of a training step of each row of a table, relative to its baseline (the paper's appendix B.3).

    python -m benchmarks.batch_time multi30k_converged --out benchmarks/results/batch_time_multi30k_converged.json
    python -m benchmarks.batch_time coco_labels_converged --out benchmarks/results/batch_time_coco_labels_converged.json

A row and the baseline train in turns, each in a process of its own, on the same batches, so that whatever else the
machine does falls on both. What is told are medians, and the median of the ratios of neighbours. The table's data have
to be there.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import write_json
from benchmarks.training_step import Worker, in_turns
from smoothloss_trainer import shipped
from smoothloss_trainer.run_table import TableRow, load_table, override_words

HERE = Path(__file__).resolve().parent.parent


def measure(recipes: list[tuple[str, list[str]]], rounds: int, steps: int) -> dict[str, Any]:
    """Milliseconds a step of the second recipe, and how many times that of the first.

    Args:
        recipes: Of each its file, and changes to it as on the command line.
        rounds: How often each has its turn.
        steps: Of a turn.
    """
    times = in_turns([Worker(HERE, *recipe) for recipe in recipes], rounds, steps)
    ratios = sorted(own / base for base, own in times)
    return {
        "ms": statistics.median(own for _, own in times),
        "baseline_ms": statistics.median(base for base, _ in times),
        "relative": statistics.median(ratios),
        "relative_p20": ratios[len(ratios) // 5],
        "relative_p80": ratios[-1 - len(ratios) // 5],
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", help="a shipped table")
    parser.add_argument("--rows", nargs="+", help="only these; all when left out")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=4, help="of a round")
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args()
    path = shipped.find(f"tables/{options.table}")
    table = load_table(path)
    unknown = [key for key in options.rows or () if key not in table.rows]
    if unknown:
        parser.error(f"--rows must be some of {', '.join(table.rows)}, got {unknown[0]!r}")

    def recipe(row: TableRow) -> tuple[str, list[str]]:
        assert row.recipe is not None
        return str(path.parent / row.recipe), override_words(table.overrides | row.overrides)

    rows = []
    for key, row in table.rows.items():
        if key == table.baseline or row.recipe is None or (options.rows and key not in options.rows):
            continue
        found = measure([recipe(table.rows[table.baseline]), recipe(row)], options.rounds, options.steps)
        rows.append({"key": key, "label": row.label or key, **found, "threads": torch.get_num_threads()})
        print(json.dumps(rows[-1]), flush=True)
        if options.out:
            write_json(options.out, torch.device("cpu"), rows)


if __name__ == "__main__":
    main()
