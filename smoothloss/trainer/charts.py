"""Line charts as inline SVG that take their colours from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 34


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Args:
        name: Shown when the pointer rests on it.
        points: (x, y) pairs by rising x; those that are not finite are left out.
        colour: Number of its colour in the style sheet (``--line-<colour>``).
        dashed: Draw it dashed and without points.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    dashed: bool = False


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers that cover [low, high]."""
    span = max(high - low, 1e-6 * max(abs(low), abs(high)))
    if span < 1e-9:  # nothing but zeros, for the eye
        span = 1.0
    step = 10.0 ** math.floor(math.log10(span / count))
    step *= min((1, 2, 5, 10), key=lambda factor: abs(span / (factor * step) - count))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]


def line_chart(title: str, lines: Sequence[Line], x_label: str) -> str:
    """A ``<figure>`` with an SVG chart; empty when no line has a point."""
    drawn = [(line, [point for point in line.points if all(map(math.isfinite, point))]) for line in lines]
    drawn = [(line, points) for line, points in drawn if points]
    if not drawn:
        return ""
    xs = [x for _, points in drawn for x, _ in points]
    ys = [y for _, points in drawn for _, y in points]
    x_ticks, y_ticks = ticks(min(0.0, *xs), max(xs)), ticks(min(ys), max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for value in y_ticks:
        x, y = place(x_ticks[0], value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{x - 7:.1f}" y="{y + 3.5:.1f}" text-anchor="end">{value:g}</text>')
    for value in x_ticks:
        x, y = place(value, y_ticks[0])
        parts.append(f'<text class="tick" x="{x:.1f}" y="{y + 15:.1f}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{escape(x_label)}</text>')
    parts += [_draw(line, [place(*point) for point in points]) for line, points in drawn]
    return f"<figure><figcaption>{escape(title)}</figcaption>{''.join(parts)}</svg></figure>"


def _draw(line: Line, places: Sequence[tuple[float, float]]) -> str:
    style = f'style="stroke:var(--line-{line.colour})"'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dash = ' stroke-dasharray="4 3" opacity="0.75"' if line.dashed else ""
    curve = f'<polyline class="curve" points="{path}" {style}{dash}><title>{escape(line.name)}</title></polyline>'
    if line.dashed or len(places) > 40:
        return curve
    fill = f'style="fill:var(--line-{line.colour})"'
    return curve + "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" {fill}/>' for x, y in places)
