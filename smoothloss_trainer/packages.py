"""Packages that only some recipes need."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from smoothloss_trainer.errors import RunError


def optional_package(name: str, key: str, extra: str) -> Any:
    """The module ``name``, which the recipe key ``key`` needs and the extra ``extra`` brings.

    Raises:
        RunError: when it is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise
        raise RunError(f"{key} needs the package {error.name}: pip install 'smoothloss[{extra}]'") from None
