"""The page docs/results.md, from the tables of runs under benchmarks/results.

python -m benchmarks.results_page            # writes it
python -m benchmarks.results_page --check    # fails when it is not what the files say
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from benchmarks.curves import curve
from smoothloss_trainer import shipped
from smoothloss_trainer.recorded import Finished, read
from smoothloss_trainer.run_table import load_table
from smoothloss_trainer.significance import Comparison, paired_bootstrap
from smoothloss_trainer.tasks import task_class

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results.md"
DATA = ("multi30k", "coco", "tatoeba")  # what the names of the tables' files begin with
TABLES = (
    "multi30k_converged",
    "multi30k_small",
    "coco_labels_converged",
    "coco_labels",
    "coco_labels_small",
    "tatoeba",
)
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


def page() -> str:
    """The page's text."""
    found = tables()
    parts = [HEAD, *advice(found), *(section(name, content) for name, content in found.items()), *missing(found)]
    return "\n".join(parts)


def advice(found: dict[str, dict[str, Any]]) -> list[str]:
    """The paragraph for whoever has to choose: of its sentences those that the tables bear out as they are now."""
    translation, captions, short, one_epoch = (
        _by_key(found, name)
        for name in ("multi30k_converged", "coco_labels_converged", "multi30k_small", "coco_labels_small")
    )
    said = []
    mild, strong = translation.get("label_smoothing_0.1"), translation.get("label_smoothing_0.3")
    if _is_above(mild) and _is_above(strong):
        said.append(
            "Begin with label smoothing, which costs nothing and is most of what can be had where an input has one "
            f"reference: on Multi30k {_gain(strong)} over MLE with 0.3, {_gain(mild)} with 0.1."
        )
        ece = [_calibration(row) for row in (mild, strong, translation["mle"]) if row]
        if all(ece) and float(ece[0]) < min(map(float, ece[1:])):
            said.append(
                f"Where probabilities matter take the weaker one: its calibration error is {ece[0]} %, that of 0.3 "
                f"{ece[1]} % and that of MLE {ece[2]} %."
            )
    _, over = over_control("multi30k_converged", found.get("multi30k_converged", {}))
    dropped, sampled = "label_smoothing_0.1_consistency_dropout_0.1", "seq_batch_0.3_smoothed"
    best, usual = translation.get(dropped), translation.get("label_smoothing_0.1_consistency")
    if best and usual and _is_above(best) and len(best["scores"]["bleu"]) > 2 and over[dropped].low > 0:
        said.append(
            f"Where a step may take {_batch_time(usual)} times as long, add R-Drop, with a dropout of 0.1: "
            f"{_gain(best)} over MLE, {_gain(best, over[dropped])} over the label smoothing that validation chooses."
        )
    more = translation.get(sampled)
    if more and _is_above(more) and over[sampled].low <= 0 <= over[sampled].high:
        said.append(
            f"The exact sequence loss with label smoothing has {_gain(more)} over MLE, and is not told apart from that "
            f"label smoothing ({_gain(more, over[sampled])})."
        )
    tok = translation.get("tok_freq")
    if tok and _is_open(tok):
        said.append(f"The paper's Tok at its own settings is not told apart from MLE there ({_gain(tok)}).")
    fast, exact = one_epoch.get("seq_cider_refs"), captions.get("seq_cider_refs")
    if _is_above(fast) and _is_above(exact):
        said.append(
            "Where an input has several references and CIDEr is the measure, take the exact sequence loss with CIDEr "
            f"as its reward and substitutes from the references: {_gain(exact)} over MLE on COCO's object labels."
        )
    elif _is_above(fast) and exact and _is_open(exact):
        greedy = _by_key(found, "coco_labels_converged_greedy").get("seq_cider_refs")
        without = f", and {_gain(greedy)} where no beam is searched" if _is_above(greedy) else ""
        said.append(
            f"On COCO's object labels the exact sequence loss with CIDEr has {_gain(fast)} over MLE after one epoch; "
            f"after five {_gain(exact)} is left, which is not told apart from nothing{without}: take it if you cannot "
            "train for long or have to decode greedily."
        )
    early = short.get("seq_batch")
    if early and early["comparison"] and early["comparison"]["high"] < 0:
        said.append(
            "Train to the end before you judge: with the batch's words as substitutes a sequence loss learns slowest, "
            f"and after six epochs of Multi30k was {_gain(early)} beside MLE."
        )
    return ["## In short\n", " ".join(said), ""] if said else []


def _by_key(found: dict[str, dict[str, Any]], name: str) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in found.get(name, {}).get("rows", ()) if "key" in row}


def _is_above(row: dict[str, Any] | None) -> bool:
    return bool(row and row["comparison"] and row["comparison"]["low"] > 0)


def _is_open(row: dict[str, Any]) -> bool:
    return bool(row["comparison"]) and row["comparison"]["low"] <= 0 <= row["comparison"]["high"]


def _gain(row: dict[str, Any] | None, over: Comparison | None = None) -> str:
    """What a row gains over its table's baseline, or over another row, in a metric's points."""
    assert row is not None
    metric = next(iter(row["scores"]))
    seeds = "" if len(row["scores"][metric]) > 1 else "; one seed"
    found = {"name": NAMES[metric], "seeds": seeds, **(row["comparison"] if over is None else asdict(over))}
    return "{difference:+.1f} {name} [{low:+.1f}, {high:+.1f}{seeds}]".format(**found)


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
    parts += [statement(rows, metric), beside_control(name, content)]
    if any(map(_batch_time, rows)):
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


def _batch_time(row: dict[str, Any]) -> str:
    """A training step's time in steps of the baseline, of a measurement of its own; empty where there is none."""
    return f"{row['batch_time']:.2f}" if row.get("batch_time") else ""


# Columns that a table has if its runs, or measurements of its own, know them.
MORE = {"ECE, %": _calibration, "words / reference": _lengths, "time of a batch": _batch_time}


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
    members = _members(row)
    seeds = f"{len(members)} in one" if members else str(len(scores))
    if comparison is None:
        return [*cells, "–", "–", seeds]
    ends = f"[{comparison['low']:+.2f}, {comparison['high']:+.2f}]"
    return [*cells, f"{comparison['difference']:+.2f} {ends}", f"{comparison['p_value']:.3f}", seeds]


def _members(row: dict[str, Any]) -> list[int]:
    """The seeds of the models that are one in a row; empty for rows of single models."""
    return list(row["runs"][0].get("members", ())) if row.get("runs") else []


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
    least = min(len(row["scores"][metric]) for row in rows if not _members(row) or row is base)
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
    said = "; ".join(f"{rows[key]['label']} {_difference(over[key])}" for key in best_first)
    return (
        f"**Beside tuned label smoothing.** Of plain label smoothing validation chooses {rows[chosen]['label']} "
        f"({_best_validation(rows[chosen], metric):.2f} {NAMES.get(metric, metric)} there). "
        f"Less that, the others have: {said}."
    )


def over_control(name: str, content: dict[str, Any]) -> tuple[str, dict[str, Comparison]]:
    """The key of the plain label smoothing that validation chooses, and what the other rows gain over it, by key.

    Needs runs whose sentences are recorded; nothing without them, or without such a control.
    """
    rows = {row["key"]: row for row in content.get("rows", ()) if row.get("runs") and "loss" in row}
    plain = {"name", "label_smoothing"}
    controls = {key: row for key, row in rows.items() if set(row["loss"]) == plain and not _members(row)}
    others = [key for key, row in rows.items() if key not in controls and row["comparison"]]
    if not controls or not others:
        return "", {}
    runs: dict[str, list[Finished]] = defaultdict(list)
    for run in read(RESULTS / f"{name}.json", content["split"]):
        runs[run.row].append(run)
    task = task_class(next(iter(runs.values()))[0].recipe.task)
    statistics = {key: torch.stack([run.statistics for run in found]) for key, found in runs.items()}
    chosen = max(controls, key=lambda key: _best_validation(controls[key], task.metric))
    return chosen, {key: paired_bootstrap(task.metric_of, statistics[key], statistics[chosen]) for key in others}


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
