"""``smoothloss train``."""

from __future__ import annotations

import argparse
from pathlib import Path

from smoothloss_trainer.commands.output import say, scores_line
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.loop import train
from smoothloss_trainer.recipe import load_recipe, read_yaml, recipe_help
from smoothloss_trainer.run import RunDirectory


def run(options: argparse.Namespace) -> None:
    """Train, or with ``--help`` behind a recipe list its keys."""
    if options.describe:
        say(recipe_help(read_yaml(Path(options.recipe)).get("task", "")).rstrip("\n"))
        return
    if options.resume and options.overwrite:
        raise RecipeError("--resume and --overwrite exclude each other")
    recipe = load_recipe(options.recipe, options.overrides)
    options.out = options.out or str(Path("runs") / recipe.name)
    scores = train(recipe, RunDirectory(options.out), resume=options.resume, overwrite=options.overwrite)
    for split, found in scores.items():
        say(scores_line(split, found))


def advice(options: argparse.Namespace) -> str:
    """Whether there is a checkpoint to go on from."""
    there = not options.describe and options.out and RunDirectory(options.out).last.is_file()
    return "--resume goes on from the last checkpoint" if there else ""
