"""What can go wrong for a user, told apart by whose fault it is. Commands report either in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

_BREAKS = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029]")


def _in_one_line(message: str) -> str:
    """The message with what breaks lines, from a file's name for example, as a space or escaped."""
    return _BREAKS.sub(lambda found: " " if found[0] in "\t\n\r" else ascii(found[0])[1:-1], message)


class RecipeError(ValueError):
    """What the user asked for cannot be done: a wrong key or value, a missing or broken file. Exit status 2."""

    def __init__(self, message: str) -> None:
        super().__init__(_in_one_line(message))


class RunError(RuntimeError):
    """What the user asked for was right and still failed: a run that diverged, or whose process died. Exit status 1."""

    def __init__(self, message: str) -> None:
        super().__init__(_in_one_line(message))


@contextmanager
def one_line() -> Iterator[None]:
    """Make a :class:`RecipeError` of the library's ValueError about a user's file."""
    try:
        yield
    except RecipeError:
        raise
    except ValueError as error:
        raise RecipeError(" ".join(str(error).split())) from None
