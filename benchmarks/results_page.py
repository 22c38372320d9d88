"""The page docs/results.md, from the tables of runs under benchmarks/results.

python -m benchmarks.results_page            # writes it
python -m benchmarks.results_page --check    # fails when it is not what the files say
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from smoothloss_trainer import shipped
from smoothloss_trainer.recorded import Finished, read
from smoothloss_trainer.reproduce import load_table
from smoothloss_trainer.significance import Comparison, paired_bootstrap
from smoothloss_trainer.tasks import task_class

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results.md"
DATA = ("multi30k", "coco", "tatoeba")  # what the names of the tables' files begin with
TABLES = ("multi30k_converged", "multi30k_small", "coco_labels", "coco_labels_small", "tatoeba")
NAMES = {"bleu": "BLEU", "cider": "CIDEr"}
HEAD = """# What the losses are worth

<!-- Written by `python -m benchmarks.results_page` from benchmarks/results. Change those, not this. -->

Which loss, with which settings, for what gain: the tables of `smoothloss reproduce`, each from its file under
`benchmarks/results`. A difference is over the table's baseline, averaged over seeds, with its 95 % interval by a paired
bootstrap. "Above" and "below" say that the interval leaves out zero; whether it reaches over seeds, or over sentences
alone, is said at each table, and what is missing at the end.
"""


def tables() -> dict[str, dict[str, Any]]:
    """The tables of runs by the stem of their file."""
    files = [path for start in DATA for path in sorted(RESULTS.glob(f"{start}*.json"))]
    read = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}
    return {name: content for name, content in read.items() if isinstance(content, dict) and "rows" in content}


def page() -> str:
    """The page's text."""
    found = tables()
    return "\n".join([HEAD, *(section(name, content) for name, content in found.items()), *missing(found)])


def section(name: str, content: dict[str, Any]) -> str:
    """A table with what it says."""
    rows = content["rows"]
    metric = next(iter(rows[0]["scores"]))
    title = NAMES.get(metric, metric)
    more = {name: column for name, column in MORE.items() if any(map(column, rows))}
    head = ["", title, f"{title} less {rows[0]['label']}", "p", "seeds", *more]
    lines = [head, ["---"] * len(head)]
    lines += [[*_cells(row, metric), *(column(row) or "–" for column in more.values())] for row in rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    with_seeds = any(row.get("interval") for row in rows)
    over = "over sentences and seeds" if with_seeds else "over sentences alone, not seeds"
    parts = [f"## {content['title']}", f"`{name}.json`, split {content['split']}; intervals {over}.", text]
    parts += [statement(rows, metric), beside_control(RESULTS / f"{name}.json", content), content.get("note", "")]
    return "\n\n".join(part for part in parts if part) + "\n"


def _calibration(row: dict[str, Any]) -> str:
    """Mean calibration error of the validation that chose each run's checkpoint, in percent; empty where unknown."""
    metric = f"validation_{next(iter(row['scores']))}"
    best = [max(run["curve"], key=lambda point: point.get(metric, 0.0)) for run in row.get("runs", ()) if run["curve"]]
    known = [100 * point["validation_ece"] for point in best if "validation_ece" in point]
    return f"{mean(known):.1f}" if known else ""


def _lengths(row: dict[str, Any]) -> str:
    """Words that the models wrote in a sentence, beside the references'; empty where unknown."""
    scores = [run["scores"] for run in row.get("runs", ()) if "words" in run["scores"]]
    if not scores:
        return ""
    return " / ".join(f"{mean(each[key] for each in scores):.2f}" for key in ("words", "reference_words"))


# Columns that a table has if its runs know them.
MORE = {"ECE, %": _calibration, "words / reference": _lengths}


def _cells(row: dict[str, Any], metric: str) -> list[str]:
    scores, comparison = row["scores"][metric], row["comparison"]
    spread = f" ± {stdev(scores):.2f}" if len(scores) > 1 else ""
    cells = [row["label"], f"{mean(scores):.2f}{spread}"]
    if comparison is None:
        return [*cells, "–", "–", str(len(scores))]
    ends = f"[{comparison['low']:+.2f}, {comparison['high']:+.2f}]"
    return [*cells, f"{comparison['difference']:+.2f} {ends}", f"{comparison['p_value']:.3f}", str(len(scores))]


def statement(rows: list[dict[str, Any]], metric: str) -> str:
    """What a table bears out, in words that follow from its numbers alone."""
    base, *others = rows
    compared = [row for row in others if row["comparison"]]
    if not compared:
        return ""
    above = [row["label"] for row in compared if row["comparison"]["low"] > 0]
    below = [row["label"] for row in compared if row["comparison"]["high"] < 0]
    open_ = [row["label"] for row in compared if row["label"] not in (*above, *below)]
    parts = [
        f"{words} {base['label']}: {'; '.join(labels)}."
        for words, labels in (("Above", above), ("Below", below), ("Not told apart from", open_))
        if labels
    ]
    best = max(rows, key=lambda row: mean(row["scores"][metric]))
    parts.append(f"The best mean is that of {best['label']}.")
    least = min(len(row["scores"][metric]) for row in rows)
    if least < 3:
        parts.append(f"With {least} seed{'s' if least > 1 else ''} in a row, none of this is known beyond these runs.")
    return " ".join(parts)


def beside_control(path: Path, content: dict[str, Any]) -> str:
    """What a table's rows gain over plain label smoothing, the strength of which validation chooses.

    Needs runs whose sentences are recorded; empty without them, or without such a control.
    """
    rows = {row["key"]: row for row in content["rows"] if row.get("runs") and "loss" in row}
    plain = {"name", "label_smoothing"}
    controls = {key: row for key, row in rows.items() if set(row["loss"]) == plain}
    others = [key for key, row in rows.items() if key not in controls and row["comparison"]]
    if not controls or not others:
        return ""
    runs: dict[str, list[Finished]] = defaultdict(list)
    for run in read(path, content["split"]):
        runs[run.row].append(run)
    task = task_class(next(iter(runs.values()))[0].recipe.task)
    statistics = {key: torch.stack([run.statistics for run in found]) for key, found in runs.items()}
    validated = {key: _best_validation(row, task.metric) for key, row in controls.items()}
    chosen = max(validated, key=lambda key: validated[key])
    words = []
    for key in others:
        found = paired_bootstrap(task.metric_of, statistics[key], statistics[chosen])
        words.append((found.difference, f"{rows[key]['label']} {_difference(found)}"))
    said = "; ".join(text for _, text in sorted(words, reverse=True))
    name = NAMES.get(task.metric, task.metric)
    return (
        f"**Beside tuned label smoothing.** Of plain label smoothing validation chooses {controls[chosen]['label']} "
        f"({validated[chosen]:.2f} {name} there). Less that, the others have: {said}."
    )


def _best_validation(row: dict[str, Any], metric: str) -> float:
    """The mean over seeds of the score that chose each run's checkpoint."""
    return mean(max(point.get(f"validation_{metric}", 0.0) for point in run["curve"]) for run in row["runs"])


def _difference(found: Comparison) -> str:
    return f"{found.difference:+.2f} [{found.low:+.2f}, {found.high:+.2f}] (p {found.p_value:.3f})"


def missing(found: dict[str, dict[str, Any]]) -> list[str]:
    """What of the shipped tables was not run, said plainly."""
    lines = []
    for name in TABLES:
        table = load_table(shipped.find(f"tables/{name}"))
        there = {row["key"]: len(next(iter(row["scores"].values()))) for row in found.get(name, {}).get("rows", [])}
        if not there:
            lines.append(f"- `{name}`: no run of it is recorded.")
            continue
        rows: dict[int, list[str]] = defaultdict(list)
        for key, row in table.rows.items():
            rows[there.get(key, 0)].append(row.label or key)
        for count, labels in sorted(rows.items(), reverse=True):
            if count < len(table.seeds):
                lines.append(f"- `{name}`, {count} of {len(table.seeds)} seeds: {'; '.join(labels)}.")
    return ["## What is missing\n", *(lines or ["Nothing of the shipped tables."]), ""]


def main(words: list[str] | None = None) -> int:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the page is another one")
    options = parser.parse_args(words)
    text = page()
    if options.check:
        same = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        sys.stderr.write("" if same else "docs/results.md is not what benchmarks/results say: write it again\n")
        return 0 if same else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
