"""``smoothloss recipes``."""

from __future__ import annotations

import argparse

from smoothloss_trainer import shipped
from smoothloss_trainer.cli.options import did_you_mean
from smoothloss_trainer.commands.output import say
from smoothloss_trainer.errors import RecipeError


def run(options: argparse.Namespace) -> None:
    """List the recipes and tables that come with the package, or print one."""
    names = shipped.names()
    if options.name is None:
        width = max(map(len, names))
        for name in names:
            say(f"{name:{width}}  {shipped.summary(name)}")
        return
    name = options.name.removesuffix(".yaml")
    if name not in names:
        raise RecipeError(f"there is no recipe {options.name!r} in the package{did_you_mean(name, names)}")
    say((shipped.FOLDER / f"{name}.yaml").read_text(encoding="utf-8").removesuffix("\n"))
