"""``smoothloss average``."""

from __future__ import annotations

import argparse

from smoothloss_trainer.commands.output import say
from smoothloss_trainer.models import average_run
from smoothloss_trainer.run import RunDirectory


def run(options: argparse.Namespace) -> None:
    """Average the last validated models of a run, and print the checkpoint's path."""
    say(str(average_run(RunDirectory(options.run), options.last)))
