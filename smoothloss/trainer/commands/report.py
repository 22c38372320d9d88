"""``smoothloss report``."""

from __future__ import annotations

import argparse

from smoothloss.trainer import report
from smoothloss.trainer.commands.output import say
from smoothloss.trainer.models import open_task
from smoothloss.trainer.run import RunDirectory


def run(options: argparse.Namespace) -> None:
    """Write a report on runs side by side, and print its path."""
    runs = [RunDirectory(path) for path in options.runs]
    task = open_task(runs[0])
    split = options.split or next(iter(task.test_splits), "validation")
    report.write(runs, options.out, split=split, examples=report.first_examples(task, split))
    say(options.out)
