"""``smoothloss tune``."""

from __future__ import annotations

import argparse
from pathlib import Path

from smoothloss_trainer import shipped
from smoothloss_trainer.commands.output import say
from smoothloss_trainer.recipe import load_recipe
from smoothloss_trainer.tuning.search import WITHOUT_TESTS, tune


def run(options: argparse.Namespace) -> None:
    """Search for the best settings on the validation part, and print the table of trials."""
    recipe = shipped.find(options.recipe)
    loaded = load_recipe(recipe, [*options.overrides, *WITHOUT_TESTS])
    space = shipped.find(options.space or f"spaces/{loaded.loss.name}")
    out = Path(options.out or Path("runs") / f"tune-{loaded.name}")
    written = tune(
        recipe, space, out, trials=options.trials, workers=options.workers, overrides=options.overrides
    )  # fmt: skip
    say(written.read_text(encoding="utf-8").removesuffix("\n"))


def advice(options: argparse.Namespace) -> str:
    """Trials are kept."""
    return "the same command goes on with what is missing"
