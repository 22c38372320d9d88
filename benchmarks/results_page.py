"""The page docs/results.md, from the tables of runs under benchmarks/results.

python -m benchmarks.results_page            # writes it
python -m benchmarks.results_page --check    # fails when it is not what the files say
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from statistics import mean, stdev
from typing import Any

from benchmarks.curves import curve
from benchmarks.recorded_rows import (
    NAMES,
    ROOT,
    Compared,
    batch_time,
    best_validation,
    calibration,
    difference,
    lengths,
    members,
    over_control,
    tables,
)
from benchmarks.results_advice import advice
from smoothloss_trainer import shipped
from smoothloss_trainer.run_table import load_table

PAGE = ROOT / "docs" / "results.md"
TABLES = (
    "multi30k_converged",
    "multi30k_small",
    "coco_labels_converged",
    "coco_labels",
    "coco_labels_small",
    "tatoeba_small",
    "tatoeba",
)
HEAD = """# What the losses are worth

<!-- Written by `python -m benchmarks.results_page` from benchmarks/results. Change those, not this. -->

Which loss, with which settings, for what gain: the tables of `smoothloss reproduce`, each from its file under
`benchmarks/results`. A difference is over the table's baseline, averaged over seeds, with its 95 % interval by a paired
bootstrap. "Above" and "below" say that the interval leaves out zero; whether it reaches over seeds, or over sentences
alone, is said at each table, and what is missing at the end.
"""


def page() -> str:
    """The page's text."""
    found = tables()
    parts = [HEAD, *advice(found), *(section(name, content) for name, content in found.items()), *missing(found)]
    return "\n".join(parts)


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
    with_seeds = any(row.get("interval") and len(row["scores"][metric]) > 1 for row in rows)
    over = "over sentences and seeds" if with_seeds else "over sentences alone, not seeds"
    parts = [f"## {content['title']}", f"`{name}.json`, split {content['split']}; intervals {over}.", text]
    parts += [statement(rows, metric), beside_control(name, content), models_as_one(name, content)]
    if any(map(batch_time, rows)):
        parts.append(
            f"The time of a batch is that of a whole training step, in steps of {rows[0]['label']}, from "
            f"[a quiet measurement of its own](../benchmarks/results/batch_time_{name}.json)."
        )
    parts += [learning(name, rows, metric), examples(rows, content["split"]), *_note(content.get("note", ""))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _note(note: str) -> list[str]:
    """What differs from the paper, and, folded away, the settings; what is missing stands at the page's end."""
    own, *others = re.split(r" (?=Settings of these runs|Not there yet:|Of other code)", note)
    folded = [each for each in others if not each.startswith("Not there yet:")]
    if not folded:
        return [own]
    return [own, "<details><summary>Settings and code</summary>", *folded, "</details>"]


# Columns that a table has if its runs, or measurements of its own, know them.
MORE = {"ECE, %": calibration, "words / reference": lengths, "time of a batch": batch_time}


def learning(name: str, rows: list[dict[str, Any]], metric: str) -> str:
    """How far validation had come at each quarter of the longest run; empty where no run has a curve."""
    known = {row["label"]: dict(curve(row, f"validation_{metric}")) for row in rows}
    last = max((epoch for points in known.values() for epoch in points), default=0)
    if last < 2:
        return ""
    quarters = sorted({-(-last * part // 4) for part in range(1, 5)})
    head = ["", *(f"{epoch:.0f}" for epoch in quarters)]
    lines = [head, ["---", *["--:"] * len(quarters)]]
    for label, points in known.items():
        if points:
            lines.append([label, *(f"{points[epoch]:.1f}" if epoch in points else "–" for epoch in quarters)])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    title = f"**Learning.** {NAMES.get(metric, metric)} on the validation part, greedy, after so many epochs, the mean"
    return f"{title} of the seeds ([all of it, drawn](../benchmarks/results/{name}.json)):\n\n{text}"


def examples(rows: list[dict[str, Any]], split: str) -> str:
    """What the first run of each row wrote for the same inputs; empty where no run says."""
    known = {row["label"]: run["examples"] for row in rows for run in row.get("runs", ())[:1] if run.get("examples")}
    if not known:
        return ""
    ids = list(next(iter(known.values())))
    parts = [f"**Examples.** What the model of the first seed wrote for inputs of the {split} part."]
    for each in ids:
        by_text: dict[str, list[str]] = defaultdict(list)
        for label, texts in known.items():
            if each in texts:
                by_text[texts[each]].append(label)
        lines = [f"  * {text} ({'; '.join(labels)})" for text, labels in by_text.items()]
        parts.append("\n".join([f"* Input `{each}`:", *lines]))
    return parts[0] + "\n\n" + "\n".join(parts[1:])


def _cells(row: dict[str, Any], metric: str) -> list[str]:
    scores, comparison = row["scores"][metric], row["comparison"]
    spread = f" ± {stdev(scores):.2f}" if len(scores) > 1 else ""
    cells = [row["label"], f"{mean(scores):.2f}{spread}"]
    together = len(members(row))
    seeds = f"{together} in one" if together else str(len(scores))
    if comparison is None:
        return [*cells, "–", "–", seeds]
    ends = f"[{comparison['low']:+.2f}, {comparison['high']:+.2f}]"
    return [*cells, f"{comparison['difference']:+.2f} {ends}", f"{comparison['p_value']:.3f}", seeds]


def statement(rows: list[dict[str, Any]], metric: str) -> str:
    """What a table bears out, in words that follow from its numbers alone."""
    base, *others = (row for row in rows if not members(row))
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
    best = max((base, *others), key=lambda row: mean(row["scores"][metric]))
    parts.append(f"The best mean is that of {best['label']}.")
    least = min(len(row["scores"][metric]) for row in (base, *others))
    if least < 3:
        parts.append(f"With {least} seed{'s' if least > 1 else ''} in a row, none of this is known beyond these runs.")
    return " ".join(parts)


def beside_control(name: str, content: dict[str, Any]) -> str:
    """What a table's rows gain over plain label smoothing, the settings of which validation chooses."""
    chosen, over = over_control(name, content)
    if not over:
        return ""
    rows = {row["key"]: row for row in content["rows"]}
    metric = next(iter(rows[chosen]["scores"]))
    best_first = sorted(over, key=lambda key: -over[key].difference)
    said = "; ".join(f"{rows[key]['label']} {difference(over[key])}" for key in best_first)
    return (
        f"**Beside tuned label smoothing.** Of plain label smoothing validation chooses {rows[chosen]['label']} "
        f"({best_validation(rows[chosen], metric):.2f} {NAMES.get(metric, metric)} there). "
        f"Less that, the others have: {said}."
    )


def models_as_one(name: str, content: dict[str, Any]) -> str:
    """What rows gain whose models are one, over their models and over each other; empty where a table has none."""
    if not any(map(members, content["rows"])):
        return ""
    table, metric = load_table(shipped.find(f"tables/{name}")), next(iter(content["rows"][0]["scores"]))
    scores = {row["key"]: mean(row["scores"][metric]) for row in content["rows"] if "key" in row}
    of = {key: row.ensemble for key, row in table.rows.items() if key in scores and row.ensemble in scores}
    if not of:
        return ""
    runs, counts = Compared(name, content["split"]), {row["key"]: len(members(row)) for row in content["rows"]}
    best, *others = sorted(of, key=lambda key: -scores[key])
    gains = (
        f"the {counts[key]} models of {table.rows[of[key]].label} have {scores[key]:.2f}, "
        f"{difference(runs.less(key, of[key]))} over one of them"
        for key in (best, *others)
    )
    beside = (f"{table.rows[of[key]].label} {difference(runs.less(best, key))}" for key in others)
    more = f" Those of {table.rows[of[best]].label} less the others: {'; '.join(beside)}." if others else ""
    return f"**Models as one**, each word by the mean of their probabilities: {'; '.join(gains)}.{more}"


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
            done = row.ensemble is not None and key in there
            rows[len(table.seeds) if done else there.get(key, 0)].append(row.label or key)
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
