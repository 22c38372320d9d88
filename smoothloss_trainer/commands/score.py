"""``smoothloss score``."""

from __future__ import annotations

import argparse

from smoothloss_trainer.commands.output import say
from smoothloss_trainer.score import score_files


def run(options: argparse.Namespace) -> None:
    """Score candidates in a file, and print the table, or with ``--out -`` the JSON alone."""
    table = score_files(options)
    if options.out != "-":
        say(table)
