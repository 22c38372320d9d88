"""What a search came to: a table, a plot of the scores over each key, a report on the best trials, the best recipe."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from smoothloss._files import write_atomically
from smoothloss_trainer import report
from smoothloss_trainer.checkpoint import write_json
from smoothloss_trainer.documents import dump_yaml
from smoothloss_trainer.recipe import load_recipe
from smoothloss_trainer.run import RunDirectory, flat, recipe_values

FILES = ("tune.md", "tune.json", "tune.png", "report.html", "best.yaml")
_SHOWN_RUNS = 5  # in the report
_UNCHANGED = ("training.tests", "data.test", "data.raw")  # of the best recipe, which is tested


@dataclass(frozen=True)
class Result:
    """What a trial came to.

    Args:
        number: Its number.
        state: ``complete``, ``pruned``, ``failed``, ``cut off``, ``running`` or ``waiting``.
        score: Its best validation score; None without a validation.
        epochs: How many validations it had.
        values: What each key was.
        folder: The run's, in the folder of the search.
        error: Why it failed.
    """

    number: int
    state: str
    score: float | None
    epochs: int
    values: Mapping[str, Any]
    folder: str
    error: str = ""


def write_results(
    metric: str, lower_is_better: bool, keys: Sequence[str], results: Sequence[Result], out: Path, base: Path
) -> None:
    """Write all files; the report and the best recipe once a trial came to its end.

    Args:
        metric: The validation score.
        lower_is_better: Whether the least is the best.
        keys: What was tuned.
        results: The trials.
        out: The folder.
        base: The recipe's file.
    """
    sign = 1 if lower_is_better else -1
    shown = [result for result in results if result.state != "cut off"]
    shown.sort(key=lambda result: math.inf if result.score is None else sign * result.score)
    head = ["trial", f"validation {metric}", "state", "epochs", *keys]
    rows = [_cells(result, keys) for result in shown]
    lines = [head, ["---"] * len(head), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    write_atomically(out / "tune.md", f"{table}\n\n{_legend(metric)}\n".encode())
    write_json(out / "tune.json", {"metric": metric, "keys": list(keys), "trials": [asdict(each) for each in results]})
    write_atomically(out / "tune.png", _plot(metric, keys, shown))
    complete = [result for result in shown if result.state == "complete"]
    if not complete:
        return
    runs = [RunDirectory(out / result.folder) for result in complete]
    write_atomically(out / "best.yaml", dump_yaml(_best_recipe(base, runs[0])).encode())
    report.write(
        runs[:_SHOWN_RUNS],
        out / "report.html",
        title=f"Search over {', '.join(keys)}",
        introduction=f"Curves, examples and settings below are of the best {min(len(runs), _SHOWN_RUNS)} trials.",
        split="validation",
        sections=[report.section("Trials", head, rows, _legend(metric))],
    )


def _best_recipe(base: Path, run: RunDirectory) -> dict[str, Any]:
    """What a run's recipe changes of the one that was tuned."""
    before = flat(recipe_values(load_recipe(base, ["--training.tests", "false"])))
    recipe: dict[str, Any] = {"base": str(base.resolve())}
    for key, value in flat(recipe_values(run.recipe())).items():
        if before.get(key) == value or key.startswith(_UNCHANGED):
            continue
        *sections, name = key.split(".")
        inner = recipe
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return recipe


def _cells(result: Result, keys: Sequence[str]) -> list[str]:
    score = "–" if result.score is None else f"{result.score:.2f}"
    return [str(result.number), score, result.state, str(result.epochs), *(_shown(result.values[key]) for key in keys)]


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "–" if value is None else str(value)


def _legend(metric: str) -> str:
    best = f"The best validation {metric} of each trial, the best trial first; `best.yaml` is its recipe."
    return f"{best} Nothing of the test part was read. Pruned trials stood below the median of the others at their end."


def _plot(metric: str, keys: Sequence[str], results: Sequence[Result]) -> bytes:
    """The score of each trial over each key, as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(keys), 3.0), layout="constrained")
    for place, key in enumerate(keys, 1):
        axes = figure.add_subplot(1, len(keys), place)
        for state, marker in (("complete", "o"), ("pruned", "x")):
            points = [(each.values[key], each.score) for each in results if each.state == state]
            points = [(value, score) for value, score in points if value is not None and score is not None]
            if points:
                values, scores = zip(*points, strict=True)
                is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
                axes.plot(values if is_number else list(map(str, values)), scores, marker, label=state)
        axes.set_xlabel(key)
        if place == 1:
            axes.set_ylabel(f"validation {metric}")
            if axes.lines:
                axes.legend()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()
