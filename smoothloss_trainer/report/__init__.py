"""A self-contained HTML report on a list of runs: curves, scores, examples, data, similarity, speed and settings.

What is shown is gathered into plain dataclasses (``runs``, ``inputs``, ``examples``, ``tables``, ``similarity``); the
templates turn those into HTML and know nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from smoothloss._files import write_out
from smoothloss_trainer.report.inputs import open_data, read_data
from smoothloss_trainer.report.page import assemble, render
from smoothloss_trainer.report.runs import read_runs
from smoothloss_trainer.report.tables import Section, section
from smoothloss_trainer.run import RunDirectory
from smoothloss_trainer.tasks import Task

__all__ = ["Section", "section", "write"]


def write(
    runs: Sequence[RunDirectory],
    path: str | Path,
    *,
    title: str = "Training report",
    introduction: str = "",
    split: str | None = None,
    task: Task | None = None,
    words: Sequence[str] = (),
    step_times: Mapping[str, Sequence[float]] | None = None,
    sections: Sequence[Section] = (),
) -> None:
    """Write one HTML file that needs nothing else: no script, no font, no address from outside.

    Args:
        runs: The runs to compare; the first is the baseline. They may be unfinished, and lack files.
        path: Where the report goes; ``-`` is the standard output.
        title: Its title.
        introduction: A paragraph of plain text below the title.
        split: The split whose scores and hypotheses are shown; None: the first test split, or the validation part.
        task: The task of the first run, where it is open already. None reads the data, as far as they are there.
        words: Words whose neighbours are shown; left out, some are taken from the whole range of frequencies.
        step_times: Seconds of single training steps by name of the loss; the first is the baseline.
        sections: Further sections (see :func:`section`), shown first.

    Raises:
        RecipeError: when a run is not there or its recipe is broken, when runs are of different tasks, or when the
            data have no such split.
        ValueError: when ``runs`` is empty.
        OSError: when the file cannot be written.
    """
    if not runs:
        raise ValueError("runs must name at least one run, got none")
    opened = task or open_data(runs[0])
    split = split or _split(runs, opened)
    results = read_runs(runs, split)
    report = assemble(
        results,
        read_data(results, split, opened),
        split,
        title=title,
        introduction=introduction,
        words=words,
        step_times=step_times or {},
        sections=sections,
    )
    page = render(report)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_out(path, page.encode("utf-8", "xmlcharrefreplace"))


def _split(runs: Sequence[RunDirectory], opened: Task | str) -> str:
    """The first test split, or without one the validation part; without the data, the first that was scored."""
    if isinstance(opened, Task):
        return next(iter(opened.test_splits), "validation")
    files = (file.name for run in runs for file in sorted(run.path.glob("scores.*.json")))
    found = [name.removeprefix("scores.").removesuffix(".json") for name in files]
    return next((split for split in found if split != "validation"), next(iter(found), "test"))
