from __future__ import annotations

import math
from itertools import pairwise

import pytest

from smoothloss.trainer.charts import Line, line_chart, ticks


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, 1.0), (1.37, 1.93), (0.0, 50.0), (-3.0, 117.0), (2.0, 2.0), (0.0, 0.0), (1e-13, 3e-12), (7.0, 7.0 + 1e-15)],
)
def test_ticks_cover_the_range_with_few_round_numbers(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low + 1e-9 and found[-1] >= high and found[0] < found[-1]
    assert 2 <= len(found) <= 12
    steps = {round(after - before, 9) for before, after in pairwise(found)}
    assert len(steps) == 1


def test_a_chart_draws_each_line_and_leaves_out_what_is_not_finite() -> None:
    chart = line_chart("a < b", [Line("one", [(1, 2.0), (2, math.nan), (3, 4.0)]), Line("two", [], 1)], "epoch")
    assert "a &lt; b" in chart and chart.count("<polyline") == 1 and chart.count("<circle") == 2
    assert "nan" not in chart and "--line-0" in chart


def test_nothing_to_draw_is_no_chart() -> None:
    assert line_chart("empty", [Line("none", [(1, math.inf)])], "epoch") == ""
