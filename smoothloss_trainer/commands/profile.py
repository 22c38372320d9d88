"""``smoothloss profile``."""

from __future__ import annotations

import argparse
import os

from smoothloss_trainer.checkpoint import write_json
from smoothloss_trainer.commands.output import say
from smoothloss_trainer.profiling import profile, table
from smoothloss_trainer.recipe import load_recipe


def run(options: argparse.Namespace) -> None:
    """Train some steps of a recipe, print where their time goes, and write it with ``--out``."""
    found = profile(load_recipe(options.recipe, options.overrides), options.steps)
    if os.environ.get("RANK", "0") != "0":  # the first of several processes tells
        return
    say(table(found))
    if options.out:
        write_json(options.out, found)
