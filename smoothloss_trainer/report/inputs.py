"""The inputs that runs wrote about: from the data, or where those are gone from the files of the run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.models import open_task
from smoothloss_trainer.report.images import Thumbnail, thumbnail
from smoothloss_trainer.report.runs import RunResults, first_line
from smoothloss_trainer.run import RunDirectory
from smoothloss_trainer.tasks import Input, Task

CIDER = "CIDEr-D:n4,sigma6,df:refs[{n}]"
MOST_REFERENCES = 100  # of an input


@dataclass
class Data:
    """What is known of the data of some runs.

    Args:
        runs: The runs that have them.
        inputs: Those of the split, in order; none where neither data nor references can be read.
        sizes: Inputs of each part by its name.
        task: The task, where the data can be read.
        note: Why they cannot.
    """

    runs: list[RunResults]
    inputs: list[Input]
    sizes: dict[str, int] = field(default_factory=dict)
    task: Task | None = None
    note: str | None = None

    def same_inputs(self, other: Data) -> bool:
        """Whether the split is the same, as far as is known."""
        if self is other or not self.inputs or not other.inputs:
            return True
        return [each[:2] for each in self.inputs] == [each[:2] for each in other.inputs]

    def picture(self, name: str) -> Thumbnail | None:
        """What is to be seen of an input."""
        try:
            found = None if self.task is None else self.task.picture(name)
        except OSError:  # such as a name that is too long
            return None
        return None if found is None else thumbnail(found)


def read_data(results: Sequence[RunResults], split: str, first: Task | str) -> list[Data]:
    """The data of the runs, those of the first one first; runs with the same ``data:`` section share them.

    Args:
        results: The runs.
        split: The split.
        first: What :func:`open_data` gave for the first run.

    Raises:
        RecipeError: when the data of the first run have no such split.
    """
    groups: dict[str, list[RunResults]] = {}
    for result in results:
        groups.setdefault(json.dumps(result.settings["data"], sort_keys=True, default=str), []).append(result)
    own, *others = groups.values()
    return [_read(own, split, first), *(_read(runs, split, open_data(runs[0].run)) for runs in others)]


def open_data(run: RunDirectory) -> Task | str:
    """The task of a run, or why its data cannot be read."""
    try:
        return open_task(run)
    except (RecipeError, OSError, ImportError) as error:
        return first_line(error)


def _read(runs: list[RunResults], split: str, opened: Task | str) -> Data:
    if isinstance(opened, str):
        return Data(runs, references_of(runs[0], split), note=opened)
    if split != "validation" and split not in opened.test_splits and runs[0].number:
        return Data(runs, [], opened.sizes(), opened, note=f"there is no split {split}")
    inputs = opened.inputs(split)
    try:
        for result in runs:
            result.run.check_data(opened, [split])
    except RecipeError as error:  # others now: what the run wrote is not about them
        return Data(runs, references_of(runs[0], split), note=first_line(error))
    return Data(runs, inputs, opened.sizes(), opened)


def references_of(result: RunResults, split: str) -> list[Input]:
    """The inputs of a split with the references that the run keeps beside its hypotheses, in their order.

    They are lines of ``references.<split>.txt``, or of ``references.<split>.0.txt`` and so on, where an input that has
    fewer has empty lines. Nothing where there are none, or not as many as hypotheses.
    """
    names = list(result.hypotheses)
    columns = [_lines(result.run.path / f"references.{split}.txt")]
    if columns == [None]:
        columns = [_lines(file) for file in _numbered(result.run.path, split)]
    if not columns or any(column is None or len(column) != len(names) for column in columns):
        return []
    rows = zip(names, *(column or [] for column in columns), strict=True)
    return [Input(name, [text for text in texts if text]) for name, *texts in rows]


def signature(inputs: Sequence[Input], metrics: str, version: str) -> str:
    """What scores depend on besides the texts, in the manner of sacrebleu's signatures."""
    counts = [len(each.references) for each in inputs]
    references = "-".join(map(str, sorted({min(counts, default=0), max(counts, default=0)})))
    return f"n:{len(inputs)}|nrefs:{references}|case:mixed|tok:none|{metrics}|version:smoothloss-{version}"


def _numbered(folder: Path, split: str) -> list[Path]:
    files = [folder / f"references.{split}.{number}.txt" for number in range(MOST_REFERENCES)]
    return [file for file in files if file.is_file()]


def _lines(file: Path) -> list[str] | None:
    try:
        return file.read_bytes().decode("utf-8", "replace").removesuffix("\n").split("\n")
    except OSError:
        return None
