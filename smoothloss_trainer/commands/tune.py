"""``smoothloss tune``."""

from __future__ import annotations

import argparse
from pathlib import Path

from smoothloss_trainer import shipped
from smoothloss_trainer.commands.output import say
from smoothloss_trainer.tuning import tune


def run(options: argparse.Namespace) -> None:
    """Try settings, write what came of it, and print the table."""
    path = shipped.find(options.recipe)
    out = Path(options.out or Path("runs") / f"{path.stem}-tune")
    written = tune(path, out, trials=options.trials, workers=options.workers, overrides=options.overrides)
    say(written.read_text(encoding="utf-8").removesuffix("\n"))


def advice(options: argparse.Namespace) -> str:
    """What was tried so far is kept."""
    return "the same command goes on where it was"
