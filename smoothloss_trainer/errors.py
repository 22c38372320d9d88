"""What can go wrong for a user, told apart by whose fault it is. Commands report either in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class RecipeError(ValueError):
    """What the user asked for cannot be done: a wrong key or value, a missing or broken file. Exit status 2."""


class RunError(RuntimeError):
    """What the user asked for was right and still failed: a run that diverged, or whose process died. Exit status 1."""


@contextmanager
def one_line() -> Iterator[None]:
    """Make a :class:`RecipeError` of the library's ValueError about a user's file."""
    try:
        yield
    except RecipeError:
        raise
    except ValueError as error:
        raise RecipeError(" ".join(str(error).split())) from None
