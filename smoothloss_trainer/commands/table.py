"""``smoothloss table build | show``."""

from __future__ import annotations

import argparse

from smoothloss_trainer.commands.output import say
from smoothloss_trainer.table import build_table_file, describe_words


def run(options: argparse.Namespace) -> None:
    """Build a similarity table, or show words of one."""
    if options.action == "build":
        say(build_table_file(options))
    else:
        say(describe_words(options.table, options.vocabulary, options.word, options.neighbours))
