"""What is on disk about a run. What is missing or damaged is left out, and noted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from smoothloss.similarity import SimilarityTable
from smoothloss_trainer.comparison import recipe_values
from smoothloss_trainer.config import DecodingConfig, Recipe
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.report.state import State, count_parameters, is_number, read_state
from smoothloss_trainer.report.styles import Style, style_of
from smoothloss_trainer.run import RunDirectory
from smoothloss_trainer.vocabulary import Vocabulary

_SETTINGS = {each.name for each in fields(DecodingConfig)}


def _is_score(key: str) -> bool:
    return key not in _SETTINGS and not key.endswith("_signature")


@dataclass
class RunResults:
    """A run, read.

    Args:
        run: Where it lies.
        number: Its place among the runs of the report.
        label: Its name, which no other run of the report has.
        style: What its line looks like.
        recipe: What was trained.
        settings: The recipe as plain values.
        metrics: The lines of ``metrics.jsonl``.
        state: How far it has come.
        parameters: Size of its model; None where it has no checkpoint.
        results: What ``scores.<split>.json`` holds.
        hypotheses: What it wrote by input id.
        environment: Versions and machine.
        vocabularies: Its vocabularies by name.
        notes: What is missing or damaged, a sentence each.
    """

    run: RunDirectory
    number: int
    label: str
    style: Style
    recipe: Recipe
    settings: dict[str, Any]
    metrics: list[dict[str, Any]]
    state: State
    parameters: int | None
    results: dict[str, Any]
    hypotheses: dict[str, str]
    environment: dict[str, Any]
    vocabularies: dict[str, Vocabulary]
    notes: list[str] = field(default_factory=list)

    @property
    def scores(self) -> dict[str, float]:
        """The scores by metric."""
        return {key: float(value) for key, value in self.results.items() if _is_score(key) and is_number(value)}

    @property
    def signatures(self) -> dict[str, str]:
        """What scores depend on besides the text, by metric."""
        suffix = "_signature"
        found = {key.removesuffix(suffix): value for key, value in self.results.items() if key.endswith(suffix)}
        return {key: value for key, value in found.items() if isinstance(value, str)}

    @property
    def decoding(self) -> dict[str, Any]:
        """How the hypotheses were found; before there are any, how they will be."""
        found = {key: value for key, value in self.results.items() if key in _SETTINGS}
        return found or {**self.settings["decoding"]}

    def curve(self, metric: str) -> list[tuple[float, float]]:
        """(epoch, value) of a metric; training losses lie within their epoch."""
        found = [line for line in self.metrics if is_number(line.get(metric))]
        if metric != "train_loss":
            return [(float(line["epoch"]), float(line[metric])) for line in found]
        steps = {line["epoch"]: line["step"] for line in self.metrics}  # the last step seen in each epoch
        longest = max(steps.values(), default=1) / max(steps, default=1)  # steps per epoch, about
        return [(line["step"] / (longest or 1), float(line[metric])) for line in found]

    @property
    def best(self) -> dict[str, Any]:
        """The validation line of the best checkpoint, found by the metric that chose it."""
        chosen = self.recipe.training.metric
        keys = (f"validation_{chosen}",) if chosen else ("validation_cider", "validation_bleu")
        for metric in (*keys, "validation_loss"):
            lines = [line for line in self.metrics if is_number(line.get(metric))]
            if lines:
                sign = -1.0 if metric == "validation_loss" else 1.0
                return max(lines, key=lambda line: sign * line[metric])
        return {}

    @cached_property
    def table(self) -> SimilarityTable | None:
        """Its similarity table."""
        if not self.run.table_file.is_file() or "target" not in self.vocabularies:
            return None
        try:
            return SimilarityTable.load(self.run.table_file, len(self.vocabularies["target"]))
        except (OSError, ValueError) as error:
            self.notes.append(f"{self.run.table_file.name} cannot be read: {first_line(error)}")
            return None


def read_runs(runs: Sequence[RunDirectory], split: str) -> list[RunResults]:
    """What is on disk about each run, with labels that tell them apart.

    Raises:
        RecipeError: when a directory holds no run, or its recipe cannot be read; when runs are of different tasks.
    """
    recipes = [run.recipe() for run in runs]
    for run, recipe in zip(runs, recipes, strict=True):
        if recipe.task != recipes[0].task:
            tasks = f"{runs[0].path} is of the task {recipes[0].task}, {run.path} of {recipe.task}"
            raise RecipeError(f"a report needs runs of one task: {tasks}")
    labels = distinct_labels([recipe.name for recipe in recipes], [run.path for run in runs])
    return [
        _read(run, recipe, number, label, split)
        for number, (run, recipe, label) in enumerate(zip(runs, recipes, labels, strict=True))
    ]


def distinct_labels(names: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """The runs' names; with their directories, and numbers if need be, where names are the same."""
    labels = [" ".join(name.split()) or path.name for name, path in zip(names, paths, strict=True)]
    for shown in ([path.name for path in paths], [str(path) for path in paths]):
        seen = Counter(labels)
        labels = [f"{label} ({more})" if seen[label] > 1 else label for label, more in zip(labels, shown, strict=True)]
    seen = Counter(labels)
    return [f"{label} [{n}]" if seen[label] > 1 else label for n, label in enumerate(labels, 1)]


def _read(run: RunDirectory, recipe: Recipe, number: int, label: str, split: str) -> RunResults:
    notes: list[str] = []
    metrics = _metrics(run.metrics_file, notes)
    hypotheses = _json(run.path / f"hypotheses.{split}.json", notes)
    return RunResults(
        run=run,
        number=number,
        label=label,
        style=style_of(number),
        recipe=recipe,
        settings=recipe_values(recipe),
        metrics=metrics,
        state=read_state(run, metrics),
        parameters=count_parameters(run),
        results=_json(run.path / f"scores.{split}.json", notes),
        hypotheses={name: text for name, text in hypotheses.items() if isinstance(text, str)},
        environment=_json(run.path / "environment.json", notes),
        vocabularies=_vocabularies(run.path, notes),
        notes=notes,
    )


def _json(file: Path, notes: list[str]) -> dict[str, Any]:
    """A mapping; empty where there is none."""
    if not file.is_file():
        notes.append(f"{file.name} is not there")
        return {}
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{file.name} cannot be read: {first_line(error)}")
        return {}
    if not isinstance(content, dict):
        notes.append(f"{file.name} does not hold a mapping")
        return {}
    return content


def _metrics(file: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The lines that can be read."""
    try:
        lines = file.read_bytes().splitlines()
    except OSError:
        notes.append(f"{file.name} is not there")
        return []
    found = [_metrics_line(line) for line in lines if line.strip()]
    kept = [line for line in found if line is not None]
    if len(kept) < len(found):
        notes.append(f"{len(found) - len(kept)} of {len(found)} lines of {file.name} cannot be read and are left out")
    return kept


def _metrics_line(line: bytes) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or not all(_is_count(values.get(key)) for key in ("step", "epoch")):
        return None
    return values


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and is_number(value) and value >= 0


def _vocabularies(folder: Path, notes: list[str]) -> dict[str, Vocabulary]:
    found: dict[str, Vocabulary] = {}
    for file in sorted(folder.glob("vocabulary.*.json")):
        try:
            found[file.name.split(".")[1]] = Vocabulary.load(file)
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            notes.append(f"{file.name} cannot be read: {first_line(error)}")
    if "target" not in found:
        notes.append("its target vocabulary is not there")
    return found


def first_line(error: Exception) -> str:
    """An error in one line."""
    return " ".join(str(error).split())
