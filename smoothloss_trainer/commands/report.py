"""``smoothloss report``."""

from __future__ import annotations

import argparse

from smoothloss_trainer import report
from smoothloss_trainer.commands.output import say
from smoothloss_trainer.run import RunDirectory


def run(options: argparse.Namespace) -> None:
    """Write a report on runs side by side, and print its path."""
    report.write([RunDirectory(path) for path in options.runs], options.out, split=options.split)
    if options.out != "-":
        say(options.out)
