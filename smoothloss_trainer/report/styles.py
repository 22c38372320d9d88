"""How runs are told apart: a colour, a dash and a marker each, so that no two look alike, also to the colour-blind."""

from __future__ import annotations

from dataclasses import dataclass

# The colours themselves are in report.css, for light and dark: Okabe and Ito's, less yellow and black. The three
# counts make the combinations of so many runs all differ: 7 * 4 * 9.
COLOURS = 7
DASHES: tuple[str | tuple[int, tuple[float, ...]], ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2)))
# No star: it marks the best value of a column.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")


@dataclass(frozen=True)
class Style:
    """What a run's line looks like.

    Args:
        colour: Number of its colour in the style sheet (``--line-<colour>``).
        dash: Number of its dash in :data:`DASHES`.
        marker: Number of its marker in :data:`MARKERS`.
    """

    colour: int
    dash: int
    marker: int


def style_of(number: int) -> Style:
    """The style of the run of this number, counted from 0. The first 252 differ, the first seven in colour already."""
    return Style(number % COLOURS, number // COLOURS % len(DASHES), number % len(MARKERS))
