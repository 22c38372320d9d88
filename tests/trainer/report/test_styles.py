from __future__ import annotations

import re
from pathlib import Path

from smoothloss_trainer.report import styles
from smoothloss_trainer.report.styles import COLOURS, style_of


def test_no_two_runs_look_alike() -> None:
    found = [style_of(number) for number in range(252)]
    assert len(set(found)) == 252
    # Without any sense of colour, seven neighbours still differ.
    assert all(len({(s.dash, s.marker) for s in found[n : n + 7]}) == 7 for n in range(245))
    assert len({style.colour for style in found[:7]}) == 7


def test_the_style_sheet_has_all_colours_and_none_of_them_is_the_ink_that_marks_the_best() -> None:
    sheet = (Path(styles.__file__).parent / "templates" / "report.css").read_text()
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w+);", part)) for part in sheet.split("@media", 1))
    for scheme in (light, dark):
        lines = [scheme[f"line-{number}"] for number in range(COLOURS)]
        assert len(set(lines)) == COLOURS and scheme["ink"] not in lines
    assert re.search(r"\.star \{[^}]*color: var\(--ink\)", sheet)
