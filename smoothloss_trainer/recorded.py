"""Finished runs of a table: of a directory here, or of a file of results that another machine wrote.

A row of ``table.json`` holds, of each of its runs, what the table needs: the scores, what the first metric adds up over
the sentences (for intervals), the curve of validation, and fingerprints of code and data. So a table can be finished on
another machine without the runs that are done.
"""

from __future__ import annotations

import base64
import itertools
import logging
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from smoothloss_trainer.comparison import difference
from smoothloss_trainer.config import Recipe
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.files import read_json
from smoothloss_trainer.recipe import parse_recipe
from smoothloss_trainer.run import RunDirectory
from smoothloss_trainer.sources import code_fingerprint
from smoothloss_trainer.tasks import Task, task_class

_log = logging.getLogger(__name__)

EXAMPLES = 3  # inputs of which a record says what was written
_TOLERANCE = 1e-4  # of a score beside what its statistics come to: sacrebleu rounds nothing, CIDEr is kept in float32


@dataclass(frozen=True)
class Finished:
    """What a run came to.

    Args:
        row: The key of its row.
        seed: Its seed.
        recipe: What it was trained with.
        scores: Of the table's split, by metric; ``words`` and ``reference_words`` are the mean lengths of what it wrote
            and of the references.
        statistics: ``(N, K)`` what the task's metric adds up.
        step_ms: Milliseconds of a training step.
        curve: Of each validation: ``epoch``, ``validation_loss`` and the other numbers.
        fingerprints: Of the data's parts.
        environment: Versions and machine.
        examples: What the model wrote for a few inputs of the split, by their ids; the same inputs for every run.
        members: Of an ensemble the seeds of its models, the first of which is ``seed``; empty for one model.
    """

    row: str
    seed: int
    recipe: Recipe
    scores: dict[str, float]
    statistics: Tensor
    step_ms: float
    curve: list[dict[str, float]]
    fingerprints: dict[str, str]
    environment: dict[str, Any]
    examples: dict[str, str] = field(default_factory=dict)
    members: list[int] = field(default_factory=list)

    def entry(self) -> dict[str, Any]:
        """What ``table.json`` holds of the run beside its row's recipe, and :func:`read` reads."""
        return {
            "seed": self.seed,
            "scores": self.scores,
            "step_ms": self.step_ms,
            "curve": self.curve,
            "statistics": _packed(self.statistics),
            "fingerprints": self.fingerprints,
            "environment": self.environment,
            "examples": self.examples,
            **({"members": self.members} if self.members else {}),
        }

    def other_code(self, code: str) -> str:
        """The code that it was trained with, in words, where it is not this; else empty."""
        own = self.environment.get("code")
        return "" if own == code else f"code {own}" if own else "code of an earlier version"


def of_run(row: str, seed: int, run: RunDirectory, task: Task, split: str) -> Finished:
    """What a run that is done came to."""
    scores, statistics, examples = _written(run.path, task, split)
    environment = read_json(str(run.path / "environment.json"), "environment.json")
    environment.pop("command", None)  # paths of the machine it ran on
    curve = [
        {"epoch": line["epoch"], **{key: line[key] for key in line if key.startswith("validation_")}}
        for line in run.metrics()
        if "validation_loss" in line
    ]
    fingerprints = run.folder.facts().get("fingerprints", {})
    return Finished(
        row, seed, run.recipe(), scores, statistics, step_ms(run), curve, fingerprints, environment, examples
    )  # fmt: skip


def of_ensemble(row: str, members: Sequence[Finished], folder: Path, task: Task, split: str) -> Finished:
    """What the models of these runs came to as one, whose scores are in a folder; a step of it is a step of each."""
    scores, statistics, examples = _written(folder, task, split)
    milliseconds, seeds = sum(each.step_ms for each in members), [each.seed for each in members]
    return replace(
        members[0], row=row, scores=scores, statistics=statistics, step_ms=milliseconds, curve=[], examples=examples,
        members=seeds,
    )  # fmt: skip


def _written(folder: Path, task: Task, split: str) -> tuple[dict[str, float], Tensor, dict[str, str]]:
    """Scores, statistics and a few hypotheses of what was written for a split."""
    hypotheses, found = (
        read_json(str(folder / f"{name}.{split}.json"), f"{name}.{split}.json") for name in ("hypotheses", "scores")
    )
    scores = {key: value for key, value in found.items() if isinstance(value, float)}
    references = [text for each in task.inputs(split) for text in each.references]
    scores |= {"words": _words(hypotheses.values()), "reference_words": _words(references)}
    return scores, task.statistics(split, hypotheses), _few(hypotheses)


def read(path: Path, split: str) -> list[Finished]:
    """The runs of a ``table.json``.

    Raises:
        RecipeError: when the file is missing, damaged, or of another split.
    """
    content = read_json(str(path), "--recorded")
    try:
        if content["split"] != split:
            raise RecipeError(f"--recorded {path}: its split is {content['split']}, and the table's is {split}")
        return [_of_entry(row, entry) for row in content["rows"] for entry in row.get("runs", [])]
    except (KeyError, TypeError, ValueError, AttributeError, zlib.error) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise RecipeError(f"--recorded {path}: not a table.json, or damaged ({reason})") from None


def _of_entry(row: Mapping[str, Any], entry: Mapping[str, Any]) -> Finished:
    recipe = parse_recipe({**row["recipe"], "seed": entry["seed"]}, here=False)
    found = Finished(
        row["key"], entry["seed"], recipe, dict(entry["scores"]), _unpacked(entry["statistics"]), entry["step_ms"],
        list(entry["curve"]), dict(entry["fingerprints"]), dict(entry["environment"]), dict(entry.get("examples", {})),
        list(entry.get("members", [])),
    )  # fmt: skip
    task = task_class(recipe.task)
    said, counted = found.scores[task.metric], float(task.metric_of(found.statistics.double().sum(0)))
    if abs(said - counted) > _TOLERANCE:
        text = f"row {found.row}, seed {found.seed}: {task.metric} is {said}, and its sentences come to {counted}"
        raise ValueError(text)
    return found


@dataclass(frozen=True)
class Recorded:
    """What is taken from files of results.

    Args:
        runs: By row and seed.
        other_code: Those of other code than this, by what their code is.
    """

    runs: dict[tuple[str, int], Finished] = field(default_factory=dict)
    other_code: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, row: str, seed: int) -> None:
        """Forget a run, so that it is trained."""
        self.runs.pop((row, seed), None)
        for code, names in [*self.other_code.items()]:
            self.other_code[code] = [name for name in names if name != _place(row, seed)]
            if not self.other_code[code]:
                del self.other_code[code]


def take(
    found: Iterable[Finished],
    wanted: Mapping[tuple[str, int], Recipe],
    fingerprints: Mapping[str, str],
    members: Mapping[tuple[str, int], Sequence[int]] | None = None,
    *,
    any_code: bool = False,
) -> Recorded:
    """The runs that a table lacks and these files have, if recipe, data and code agree; of others a warning says why.

    Args:
        found: What the files have.
        wanted: The recipes of the runs that are not done, by row and seed.
        fingerprints: Of the data that are here, by part; empty where they are not known.
        members: Of those that are ensembles, the seeds of their models.
        any_code: Take runs of other code too.
    """
    taken, code, known = Recorded(), code_fingerprint(), dict(fingerprints)
    for each in found:
        place = (each.row, each.seed)
        if place not in wanted or place in taken.runs:
            continue
        name, other = f"{each.row}, seed {each.seed}", each.other_code(code)
        reason = _misfit(each, wanted[place], known)
        if each.members != list((members or {}).get(place, [])):
            seeds = ", ".join(map(str, each.members or [each.seed]))
            reason = f"its models are those of other seeds ({seeds})"
        if reason is None and other and not any_code:
            reason = f"{other}, and this is {code}: --any-code takes it nevertheless"
        if reason:
            _log.warning("%s is not taken from the record: %s", name, reason)
            continue
        taken.runs[place] = each
        if other:
            taken.other_code.setdefault(other, []).append(_place(each.row, each.seed))
        known = {**each.fingerprints, **known}
    return taken


def _misfit(found: Finished, recipe: Recipe, fingerprints: Mapping[str, str]) -> str | None:
    """Why a run is none of the table's: its recipe, or its data, where both know a part."""
    changed = [part for part, digest in found.fingerprints.items() if fingerprints.get(part, digest) != digest]
    return difference(found.recipe, recipe) or (f"the data of {changed[0]} are others" if changed else None)


def _place(row: str, seed: int) -> str:
    return f"{row} seed {seed}"


def _few(texts: Mapping[str, str]) -> dict[str, str]:
    """Some of them, far from each other and from both ends."""
    ids = list(texts)
    chosen = sorted({len(ids) * part // (2 * EXAMPLES) for part in range(1, 2 * EXAMPLES, 2)})
    return {ids[place]: texts[ids[place]] for place in chosen if ids}


def _words(texts: Iterable[str]) -> float:
    return float(mean(len(text.split()) for text in texts))


def step_ms(run: RunDirectory) -> float:
    """Median time of a training step in milliseconds, between two lines of training loss of one epoch."""
    lines = run.metrics()
    steps = [
        1000 * (after["seconds"] - before["seconds"]) / (after["step"] - before["step"])
        for before, after in itertools.pairwise(lines)
        if "train_loss" in before and "train_loss" in after and before["epoch"] == after["epoch"]
    ]
    return median(steps) if steps else math.nan


def _packed(statistics: Tensor) -> str:
    """Counts as int32, other numbers as float32, compressed, as text."""
    whole = bool((statistics == statistics.round()).all())
    plain = statistics.to(torch.int32 if whole else torch.float32).contiguous()
    return base64.b64encode(zlib.compress(save({"statistics": plain}), 9)).decode("ascii")


def _unpacked(text: str) -> Tensor:
    return load(zlib.decompress(base64.b64decode(text, validate=True)))["statistics"]
