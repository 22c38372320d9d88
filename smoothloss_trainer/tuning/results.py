"""What ``smoothloss tune`` leaves: a table, a drawing, a report on the best trials, the best settings as a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smoothloss._files import write_atomically
from smoothloss_trainer import report, shipped
from smoothloss_trainer.checkpoint import write_json
from smoothloss_trainer.documents import dump_yaml
from smoothloss_trainer.recipe import command_line_values
from smoothloss_trainer.report.tables import score_name
from smoothloss_trainer.run import RunDirectory
from smoothloss_trainer.tasks import task_class
from smoothloss_trainer.tuning.space import Plan, put

FILES = ("tune.md", "tune.json", "tune.png", "best.yaml", "report.html")
_REPORTED = 4  # trials whose curves the report shows
_STATES = {"COMPLETE": "trained", "PRUNED": "stopped", "FAIL": "failed", "RUNNING": "under way"}


def ranked(study: Any) -> list[Any]:
    """The trials that were trained to their end, the best first."""
    found = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    return sorted(found, key=lambda trial: (-trial.value, trial.number))


def write(study: Any, plan: Plan, path: Path, out: Path, overrides: Sequence[str]) -> Path:
    """Write all of :data:`FILES`, as far as there are scores; returns the Markdown table's path."""
    rows, title = _rows(study, plan), f"Trials of {plan.recipe.name}"
    head = ["trial", f"validation {_metric_name(plan)}", *plan.space, "epochs", ""]
    cells = [[str(row["trial"]), _shown(row["score"]), *(_shown(row["settings"].get(key)) for key in plan.space),
              str(row["epochs"]), row["state"]] for row in rows]  # fmt: skip
    lines = [head, ["---"] * len(head), *cells]
    note = "Stopped trials were behind the median of the others at the same epoch. Nothing of the test part was read."
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    write_atomically(out / "tune.md", f"# {title}\n\n{table}\n\n{note}\n".encode())
    write_json(out / "tune.json", {"recipe": plan.recipe.name, "metric": _metric(plan), "trials": rows})
    best = ranked(study)
    if best:
        _draw(rows, plan, out / "tune.png")
        _write_best(best[0], plan, path, out / "best.yaml", overrides, len(rows))
        runs = [RunDirectory(out / f"trial{trial.number}") for trial in best[:_REPORTED]]
        section = report.section(title, head, cells, note)
        report.write(runs, out / "report.html", title=title, split="validation", sections=[section])
    return out / "tune.md"


def _metric(plan: Plan) -> str:
    return plan.recipe.training.metric or task_class(plan.recipe.task).metric


def _metric_name(plan: Plan) -> str:
    return score_name(_metric(plan))


def _rows(study: Any, plan: Plan) -> list[dict[str, Any]]:
    """A row for each trial: those trained to their end by score, then the others in their order."""
    sign = -1.0 if _metric(plan) == "loss" else 1.0
    best = ranked(study)
    others = [trial for trial in study.trials if trial.state.name in _STATES and trial.state.name != "COMPLETE"]
    rows = []
    for trial in [*best, *others]:
        seen = trial.intermediate_values
        score = seen[max(seen)] if seen else None
        rows.append({
            "trial": trial.number,
            "score": None if score is None else sign * score,
            "settings": dict(trial.params),
            "epochs": max(seen, default=0),
            "state": _STATES[trial.state.name],
        })  # fmt: skip
    return rows


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _draw(rows: Sequence[dict[str, Any]], plan: Plan, path: Path) -> None:
    """A panel for each key: scores over its values, stopped trials hollow."""
    from matplotlib.figure import Figure

    keys = list(plan.space)
    figure = Figure(figsize=(3.4 * len(keys), 3.2), layout="constrained")
    panels = figure.subplots(1, len(keys), squeeze=False, sharey=True)[0]
    drawn = [row for row in rows if row["score"] is not None]
    for key, axes in zip(keys, panels, strict=True):
        if getattr(plan.space[key], "log", False):
            axes.set_xscale("log")
        choices = getattr(plan.space[key], "choices", None)
        for row in drawn:
            value = row["settings"][key]
            place = value if choices is None else choices.index(value)
            trained = row["state"] == "trained"
            axes.plot([place], [row["score"]], "o", color="C0", fillstyle="full" if trained else "none")
        if choices is not None:
            axes.set_xticks(range(len(choices)), [str(choice) for choice in choices])
        axes.set_xlabel(key)
    panels[0].set_ylabel(f"validation {_metric_name(plan)}")
    figure.savefig(path, dpi=120)


def _write_best(trial: Any, plan: Plan, path: Path, file: Path, overrides: Sequence[str], count: int) -> None:
    """The best settings as a recipe based on the one that was tuned."""
    found = shipped.find(path).resolve()
    inside = found.is_relative_to(shipped.FOLDER.resolve())
    base = found.relative_to(shipped.FOLDER.resolve()).with_suffix("").as_posix() if inside else str(found)
    changes = put(command_line_values(plan.recipe.task, overrides), trial.params)
    score = abs(trial.value)
    comment = (
        f"# The best of {count} trials: {_metric_name(plan)} {score:.2f} on the validation part (trial {trial.number})."
    )
    text = dump_yaml({"base": base, **changes})
    write_atomically(file, f"{comment}\n{text}".encode())
