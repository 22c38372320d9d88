"""A table of runs as text: what goes into which cell, and what stands below."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from smoothloss_trainer.significance import Comparison

if TYPE_CHECKING:
    from smoothloss_trainer.run_table import Table


@dataclass(frozen=True)
class Result:
    """What a row came to."""

    key: str
    label: str
    scores: dict[str, list[float]]  # by metric, one for each seed
    paper: dict[str, float]
    step_ms: list[float]
    comparison: Comparison | None
    interval: tuple[float, float] | None = None  # of the first metric, over sentences and seeds
    seeds: list[int] = field(default_factory=list)  # of the runs that are there, in the order of the scores
    loss: dict[str, Any] = field(default_factory=dict)  # what the recipe's loss says beyond the defaults
    recipe: dict[str, Any] = field(default_factory=dict)  # of the first seed
    fingerprints: dict[str, str] = field(default_factory=dict)  # of the data's parts
    runs: list[dict[str, Any]] = field(default_factory=list)  # of `recorded.Finished.entry`, in the order of the seeds


def cells(table: Table, result: Result, base_ms: float) -> list[str]:
    """A row's cells, as text."""
    shown = [result.label]
    for metric in table.metrics:
        values = result.scores[metric]
        spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
        shown += [f"{mean(values):.2f}{spread}" if values else "–"]
    shown += ["–" if result.interval is None else f"[{result.interval[0]:.2f}, {result.interval[1]:.2f}]"]
    comparison = result.comparison
    if comparison is None:
        shown += ["–", "–"]
    else:
        shown += [
            f"{comparison.difference:+.2f} [{comparison.low:+.2f}, {comparison.high:+.2f}]",
            f"{comparison.p_value:.3f}",
        ]
    shown += [f"{result.paper[metric]:.2f}" if metric in result.paper else "–" for metric in table.metrics]
    milliseconds = mean(result.step_ms)
    members = result.runs[0].get("members", ()) if result.runs else ()
    seeds = f"{len(members)} in one" if members else str(len(result.step_ms))
    return [*shown, seeds, f"{milliseconds:.0f}", f"{milliseconds / base_ms:.2f}"]


def headings(table: Table) -> list[str]:
    """The headings of :func:`cells`."""
    names = list(table.metrics.values())
    compared = [f"{names[0]} less {table.rows[table.baseline].label or table.baseline}", "p"]
    return [
        "",
        *names,
        f"{names[0]}, 95 %",
        *compared,
        *(f"{name}, paper" for name in names),
        "seeds",
        "ms a step",
        "relative",
    ]


def legend(table: Table) -> str:
    """What the columns mean, and the note."""
    spread = "± is the standard deviation over seeds. Scores and differences are averaged over seeds; their 95 %"
    bootstrap = "intervals, and p (two-sided), are of a paired bootstrap over sentences and seeds (2,000 resamples)."
    return f"Split {table.split}. {spread} {bootstrap} {table.note}".strip()


def base_ms_of(table: Table, results: list[Result]) -> float:
    """Milliseconds of a step of the baseline."""
    return next((mean(result.step_ms) for result in results if result.key == table.baseline), math.nan)


def markdown(table: Table, results: list[Result]) -> str:
    """The table and what it means."""
    head = headings(table)
    base_ms = base_ms_of(table, results)
    lines = [head, ["---"] * len(head), *(cells(table, result, base_ms) for result in results)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{legend(table)}"
