"""Standard streams that are closed, or that nobody takes any more: training does not end for want of a progress bar."""

from __future__ import annotations

import os
import sys
from io import FileIO, TextIOWrapper

TYPE_CHECKING = False  # not of typing: until signals are handled, every import counts
if TYPE_CHECKING:
    from typing import Any


class Unfailing(FileIO):
    """A descriptor; what cannot be written there (a full disk, a terminal that is gone) is dropped."""

    def write(self, content: Any, /) -> int:
        """Write all of it, or what goes; never an error."""
        rest = memoryview(content).cast("B")
        length = len(rest)
        try:
            while rest:
                rest = rest[super().write(rest) or len(rest) :]
        except OSError:
            pass
        return length


def prepare_streams() -> None:
    """Make the streams of this process, whose own the command is, ready for whatever they lead to.

    Descriptors 0 to 2 that are closed are taken, since a file that got such a number would be written by whoever writes
    to the standard error. They fail as closed ones do. What goes to the standard error is for people, and says nothing
    that the exit status does not say: nothing ends when it cannot be written. What the standard output's encoding lacks
    is written as its escape there too.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if number else os.O_WRONLY)  # the lowest free number
    file = Unfailing(2, "w", closefd=False)
    encoding = sys.stderr.encoding if sys.stderr is not None else "utf-8"
    sys.stderr = TextIOWrapper(file, encoding, "backslashreplace", line_buffering=True, write_through=True)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
