"""Line charts as inline SVG that take their colours from the page's style sheet. Matplotlib draws them."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

from smoothloss_trainer.report.styles import DASHES, MARKERS, Style, style_of

SIZE = (5.4, 3.1)  # inches of 72 points
MOST_POINTS = 300  # of one line; the eye sees no more
_XLINK = "{http://www.w3.org/1999/xlink}href"
# Colours that nothing else has, one for each of the style sheet's: a page may be light or dark.
_INK, _RULE = "#0000f0", "#0000f1"
_NAMED = {_INK: "var(--muted)", _RULE: "var(--rule)"}


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Args:
        points: (x, y) pairs by rising x; those that are not finite are left out.
        style: What it looks like.
    """

    points: Sequence[tuple[float, float]]
    style: Style


@dataclass(frozen=True)
class Chart:
    """A drawing.

    Args:
        title: What it shows.
        view_box: The SVG's ``viewBox``.
        content: What goes inside its ``<svg>``.
    """

    title: str
    view_box: str
    content: Markup


def line_chart(title: str, name: str, lines: Sequence[Line], x_label: str) -> Chart | None:
    """A chart of lines; None when none has a point.

    Args:
        title: What it shows.
        name: A word of letters that no other chart of the page has; its ids begin with it.
        lines: The lines.
        x_label: What x is.
    """
    drawn = [(line.style, thinned(line.points)) for line in lines]
    drawn = [(style, points) for style, points in drawn if points]
    if not drawn:
        return None
    with _settings(name):
        figure, axes = _axes(x_label)
        for number, (style, points) in enumerate(drawn):
            every = max(1, len(points) // 8)
            start = number % every if len(points) > 8 else 0  # lines that meet do not hide each other's markers
            axes.plot(*zip(*points, strict=True), **_look(style), markevery=(start, every))
        return _chart(title, name, figure)


@dataclass(frozen=True)
class Bar:
    """One bar of a chart.

    Args:
        label: What it is.
        value: Its length.
        low: Where its whisker begins.
        high: Where its whisker ends.
        text: What stands at its end.
    """

    label: str
    value: float
    low: float
    high: float
    text: str


def bar_chart(title: str, name: str, bars: Sequence[Bar], x_label: str) -> Chart | None:
    """A chart of bars, the first on top; None when there is none. Arguments as of :func:`line_chart`."""
    if not bars:
        return None
    with _settings(name), warnings.catch_warnings():
        # The font that lengths are measured in may lack a letter; the reader's has it.
        warnings.simplefilter("ignore", UserWarning)
        figure, axes = _axes(x_label)
        figure.set_figheight(0.9 + 0.36 * len(bars))
        places = range(len(bars))
        values = [bar.value for bar in bars]
        whiskers = [[bar.value - bar.low for bar in bars], [bar.high - bar.value for bar in bars]]
        look = {"elinewidth": 1, "ecolor": _INK}
        axes.barh(places, values, height=0.62, color=_look(style_of(0))["color"], xerr=whiskers, error_kw=look)
        for place, bar in zip(places, bars, strict=True):
            at = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(_plain(bar.text), (bar.high, place), color=_INK, **at)
        axes.set_yticks(places, [_plain(bar.label) for bar in bars])
        axes.invert_yaxis()
        axes.grid(visible=False)  # lines would run through the texts
        axes.xaxis.get_major_locator().set_params(nbins=5)
        axes.set_xlim(0, 1.35 * max(bar.high for bar in bars))
        return _chart(title, name, figure)


def key(number: int, style: Style) -> Chart:
    """A short piece of a run's line, to stand beside its name."""
    name = f"key{number}"
    with _settings(name):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(38 / 72, 14 / 72))
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 38), ylim=(0, 14))
        axes.set_axis_off()
        axes.plot([1, 19, 37], [7, 7, 7], **_look(style) | {"markersize": 7}, markevery=[1], clip_on=False)
        return _chart("", name, figure)


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The finite points; means of neighbours where there are more than :data:`MOST_POINTS`."""
    finite = [point for point in points if all(map(math.isfinite, point))]
    width = -(-len(finite) // MOST_POINTS)
    if width <= 1:
        return finite
    groups = [finite[start : start + width] for start in range(0, len(finite), width)]
    return [
        (math.fsum(x for x, _ in group) / len(group), math.fsum(y for _, y in group) / len(group)) for group in groups
    ]


def _settings(salt: str) -> Any:
    from matplotlib import rc_context

    # The salt makes ids the same each time; "none" keeps text as text.
    return rc_context({"svg.hashsalt": salt, "svg.fonttype": "none", "font.size": 11, "axes.unicode_minus": True})


def _axes(x_label: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[:].set_visible(False)
    axes.grid(color=_RULE, linewidth=1)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=_INK)
    axes.set_xlabel(x_label, color=_INK, loc="right")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.margins(x=0.03, y=0.08)
    return figure, axes


def _look(style: Style) -> dict[str, Any]:
    colour = f"#0000{style.colour + 1:02x}"
    return {
        "color": colour,
        "linestyle": DASHES[style.dash],
        "marker": MARKERS[style.marker],
        "markersize": 5,
        "markeredgewidth": 0,
        "linewidth": 1.8,
    }


def _chart(title: str, name: str, figure: Any) -> Chart:
    file = io.BytesIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())
    for element in root.iter():
        _make_plain(element, name)
    kept = [child for child in root if child.tag not in ("metadata",)]
    text = "".join(ElementTree.tostring(child, encoding="unicode") for child in kept)
    text = re.sub(r"#0000[0-9a-f]{2}\b", lambda found: _variable(found[0]), text)
    return Chart(title, root.attrib["viewBox"], Markup(text))  # matplotlib has escaped what is in it


def _make_plain(element: ElementTree.Element, name: str) -> None:
    """Take off namespaces, which HTML has no need of, and what would reach beyond this drawing: ids and styles."""
    element.tag = element.tag.rpartition("}")[2]
    target = element.attrib.pop(_XLINK, None)
    if target is not None:
        element.set("href", target.replace("#", f"#{name}-"))
    for attribute, value in element.attrib.items():
        if attribute == "id":
            element.set("id", f"{name}-{value}")
        elif "url(#" in value:
            element.set(attribute, value.replace("url(#", f"url(#{name}-"))
    for child in list(element):
        if child.tag.endswith("style") or child.tag.endswith("metadata"):
            element.remove(child)


def _plain(text: str) -> str:
    """The text as it can stand in a drawing: no control characters, no formulas."""
    return "".join(char if char.isprintable() else " " for char in text).replace("$", r"\$")


def _variable(colour: str) -> str:
    return _NAMED.get(colour) or f"var(--line-{int(colour[1:], 16) - 1})"
