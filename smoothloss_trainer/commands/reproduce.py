"""``smoothloss reproduce``."""

from __future__ import annotations

import argparse
from pathlib import Path

from smoothloss_trainer import shipped
from smoothloss_trainer.commands.output import say
from smoothloss_trainer.reproduce import reproduce


def run(options: argparse.Namespace) -> None:
    """Train what is missing of a table, write it, and print it."""
    path = shipped.find(options.table)
    written = reproduce(
        path, Path(options.out or Path("runs") / path.stem), rows=options.rows, seeds=options.seeds, jobs=options.jobs,
        overrides=options.overrides, train=options.train, recorded=[Path(file) for file in options.recorded],
        any_code=options.any_code,
    )  # fmt: skip
    say(written.read_text(encoding="utf-8").removesuffix("\n"))


def advice(options: argparse.Namespace) -> str:
    """What was trained so far is kept."""
    return "the same command goes on with what is missing" if options.train else ""
