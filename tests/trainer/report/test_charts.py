from __future__ import annotations

import math
import re

from smoothloss_trainer.report.charts import MOST_POINTS, Bar, Line, bar_chart, key, line_chart, thinned
from smoothloss_trainer.report.styles import style_of


def test_a_chart_draws_each_line_in_its_own_style() -> None:
    lines = [Line([(1, 2.0), (2, 4.0), (3, 3.0)], style_of(0)), Line([(1, 1.0), (2, 2.0)], style_of(8))]
    chart = line_chart("a title", "chart0", lines, "epoch")
    assert chart is not None and chart.title == "a title"
    assert "var(--line-0)" in chart.content and "var(--line-1)" in chart.content
    assert "stroke-dasharray" in chart.content
    assert re.findall(r"<text[^>]*>([^<]*)</text>", chart.content).count("epoch") == 1  # text stays text


def test_a_chart_takes_its_colours_from_the_page_and_its_ids_are_its_own() -> None:
    chart = line_chart("t", "abc", [Line([(1, 2.0), (2, 4.0)], style_of(0))], "epoch")
    assert chart is not None
    assert all(name.startswith("abc-") for name in re.findall(r'\bid="([^"]*)"', chart.content))
    assert not re.search(r"<style|<metadata|https?:|<\w+:", chart.content)
    assert not re.search(r"(stroke|fill): #", chart.content)
    assert float(chart.view_box.split()[2]) > 0


def test_what_is_not_finite_is_left_out_and_nothing_to_draw_is_no_chart() -> None:
    assert thinned([(1, 2.0), (2, math.nan), (3, -math.inf), (4, 4.0)]) == [(1, 2.0), (4, 4.0)]
    assert line_chart("empty", "a", [Line([(1, math.inf)], style_of(0)), Line([], style_of(1))], "epoch") is None


def test_long_lines_are_thinned_to_means() -> None:
    points = [(float(x), float(x % 2)) for x in range(10 * MOST_POINTS)]
    found = thinned(points)
    assert len(found) == MOST_POINTS
    assert {y for _, y in found} == {0.5} and found[0][0] == 4.5


def test_a_key_looks_like_its_line() -> None:
    first, other = key(0, style_of(0)), key(9, style_of(9))
    assert "var(--line-0)" in first.content and "var(--line-2)" in other.content
    assert "key9-" in other.content and "stroke-dasharray" in other.content
    assert "stroke-dasharray" not in first.content


def test_bars_are_as_long_as_their_values_and_texts_are_shown_as_they_are() -> None:
    bars = [Bar("MLE", 10.0, 9.0, 11.0, "1.00 times"), Bar("a $x^2$ \x00", 40.0, 39.0, 41.0, "4.00 times")]
    chart = bar_chart("t", "bars", bars, "ms")
    assert chart is not None
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", chart.content)
    assert {"MLE", "a $x^2$", "1.00 times", "4.00 times", "ms"} <= {text.strip() for text in texts}
    drawn = re.findall(r'<path d="([^"]*)"[^>]*fill: var\(--line-0\)', chart.content)
    edges = [[float(x) for x in re.findall(r"[ML] ([\d.]+) [\d.]+", path)] for path in drawn]
    widths = [max(each) - min(each) for each in edges]
    assert len(widths) == 2 and math.isclose(widths[1], 4 * widths[0], rel_tol=1e-3)
    assert bar_chart("t", "bars", [], "ms") is None
