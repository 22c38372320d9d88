"""What the recorded tables of runs say: their rows, one by one and beside each other."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from smoothloss_trainer.recorded import Finished, read
from smoothloss_trainer.significance import Comparison, paired_bootstrap
from smoothloss_trainer.tasks import task_class

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DATA = ("multi30k", "coco", "tatoeba")  # what the names of the tables' files begin with
NAMES = {"bleu": "BLEU", "cider": "CIDEr"}


def tables() -> dict[str, dict[str, Any]]:
    """The tables of runs by the stem of their file."""
    files = [path for start in DATA for path in sorted(RESULTS.glob(f"{start}*.json"))]
    read = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}
    found = {name: content for name, content in read.items() if isinstance(content, dict) and "rows" in content}
    for name, content in found.items():
        times = _batch_times(name)
        for row in content["rows"]:
            row["batch_time"] = times.get(row.get("key", ""))
    return found


def _batch_times(name: str) -> dict[str, float]:
    """What `benchmarks.batch_time` found of a table's rows: the time of a step in those of the baseline's."""
    path = RESULTS / f"batch_time_{name}.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    return {row["key"]: row["relative"] for row in rows}


def calibration(row: dict[str, Any]) -> str:
    """Mean calibration error of the validation that chose each run's checkpoint, in percent; empty where unknown."""
    metric = f"validation_{next(iter(row['scores']))}"
    best = [max(run["curve"], key=lambda point: point.get(metric, 0.0)) for run in row.get("runs", ()) if run["curve"]]
    known = [100 * point["validation_ece"] for point in best if "validation_ece" in point]
    return f"{mean(known):.1f}" if known else ""


def lengths(row: dict[str, Any]) -> str:
    """Words that the models wrote in a sentence, beside the references'; empty where unknown."""
    scores = [run["scores"] for run in row.get("runs", ()) if "words" in run["scores"]]
    if not scores:
        return ""
    return " / ".join(f"{mean(each[key] for each in scores):.2f}" for key in ("words", "reference_words"))


def batch_time(row: dict[str, Any]) -> str:
    """A training step's time in steps of the baseline, of a measurement of its own; empty where there is none."""
    return f"{row['batch_time']:.2f}" if row.get("batch_time") else ""


def members(row: dict[str, Any]) -> list[int]:
    """The seeds of the models that are one in a row; empty for rows of single models."""
    return list(row["runs"][0].get("members", ())) if row.get("runs") else []


def over_control(name: str, content: dict[str, Any]) -> tuple[str, dict[str, Comparison]]:
    """The key of the plain label smoothing that validation chooses, and what the other rows gain over it, by key.

    Needs runs whose sentences are recorded; nothing without them, or without such a control. Several models as one are
    not beside it.
    """
    rows = {row["key"]: row for row in content.get("rows", ()) if row.get("runs") and "loss" in row}
    plain = {"name", "label_smoothing"}
    controls = {key: row for key, row in rows.items() if set(row["loss"]) == plain and not members(row)}
    others = [key for key, row in rows.items() if key not in controls and row["comparison"] and not members(row)]
    if not controls or not others:
        return "", {}
    runs = Compared(name, content["split"])
    chosen = max(controls, key=lambda key: best_validation(controls[key], runs.task.metric))
    return chosen, {key: runs.less(key, chosen) for key in others}


class Compared:
    """The recorded runs of a table, row beside row.

    Args:
        name: Of the table.
        split: That it is of.
    """

    def __init__(self, name: str, split: str) -> None:
        runs: dict[str, list[Finished]] = defaultdict(list)
        for run in read(RESULTS / f"{name}.json", split):
            runs[run.row].append(run)
        self.task = task_class(next(iter(runs.values()))[0].recipe.task)
        self._statistics = {key: torch.stack([run.statistics for run in found]) for key, found in runs.items()}

    def less(self, key: str, other: str) -> Comparison:
        """What a row gains over another one."""
        return paired_bootstrap(self.task.metric_of, self._statistics[key], self._statistics[other])


def best_validation(row: dict[str, Any], metric: str) -> float:
    """The mean over seeds of the score that chose each run's checkpoint."""
    return mean(max(point.get(f"validation_{metric}", 0.0) for point in run["curve"]) for run in row["runs"])


def difference(found: Comparison) -> str:
    """A difference in words, with its interval."""
    return f"{found.difference:+.2f} [{found.low:+.2f}, {found.high:+.2f}] (p {found.p_value:.3f})"
