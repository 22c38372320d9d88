"""Examples that cannot be used: counted, and refused or left out, never in silence."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from smoothloss_trainer.errors import RecipeError

_log = logging.getLogger(__name__)


@dataclass
class Unusable:
    """What is wrong with the examples of one part of the data.

    Args:
        key: The recipe key of the part.
        kind: What the examples are, such as ``pairs``.
        skip: ``data.skip_unusable``.
        places: Where each of them is, such as ``line 3``.
        first: Why the first cannot be used.
    """

    key: str
    kind: str
    skip: bool
    places: list[str] = field(default_factory=list)
    first: str = ""

    def add(self, place: str, why: str) -> None:
        """Count one."""
        self.first = self.first or why
        self.places.append(place)

    def report(self, total: int) -> None:
        """Log in one line that those counted are left out of so many.

        Raises:
            RecipeError: the same line, when they are not to be left out, or all of them are unusable.
        """
        if not self.places:
            return
        what = f"{self.key}: {len(self.places)} of {total} {self.kind} cannot be used"
        line = f"{what}, the first is {self.places[0]}: {self.first}"
        if not self.skip:
            raise RecipeError(f"{line}; data.skip_unusable: true leaves such out")
        if len(self.places) == total:
            raise RecipeError(line)
        _log.warning("%s; they are left out", line)
