"""``smoothloss score``."""

from __future__ import annotations

import argparse

from smoothloss.trainer.commands.output import say
from smoothloss.trainer.score import score_files


def run(options: argparse.Namespace) -> None:
    """Score candidates in a file, and print the table."""
    say(score_files(options))
