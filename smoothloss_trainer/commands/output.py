"""What commands write to standard output."""

from __future__ import annotations

import sys
from collections.abc import Mapping


def say(line: str) -> None:
    """Write a line.

    Raises:
        OSError: when nobody takes it.
    """
    if sys.stdout is None:
        raise OSError("standard output is closed")
    sys.stdout.write(f"{line}\n")


def scores_line(split: str, scores: Mapping[str, float | str]) -> str:
    """``test: bleu 33.01  (signature)``."""
    shown = (f"{key} {value:.2f}" if isinstance(value, float) else f"({value})" for key, value in scores.items())
    return f"{split}: {'  '.join(shown)}"
