"""The decoding options of a command line."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from smoothloss_trainer.cli.options import DECODING, SAMPLING, SEARCHING
from smoothloss_trainer.config import DecodingConfig
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.models import run_of
from smoothloss_trainer.recipe import check_decoding


def decoding_of(first: str | Path, options: argparse.Namespace, **defaults: int) -> DecodingConfig:
    """The decoding of a run's recipe with what the options say instead.

    Args:
        first: The first run or checkpoint, whose recipe counts.
        options: What :func:`~smoothloss_trainer.cli.options.add_decoding` added.
        **defaults: In place of the recipe's, where no option says otherwise.

    Raises:
        RecipeError: when there is no such run, no search can follow the options, or one of them would do nothing.
    """
    recipe = run_of(first).recipe()
    given = {name: getattr(options, name) for name in (*DECODING, "method", "suppress_unk")}
    given = {name: value for name, value in given.items() if value is not None}
    decoding = replace(recipe.decoding, **{**defaults, **given})
    idle, other = (SAMPLING, "sample") if decoding.method == "beam" else (SEARCHING, "beam")
    for name in idle:
        if name in given:
            raise RecipeError(f"--{name} does nothing with --method {decoding.method}: it is of --method {other}")
    check_decoding(decoding)
    return decoding
