from __future__ import annotations

import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smoothloss_trainer.report.inputs import Data
from smoothloss_trainer.report.page import assemble, render
from smoothloss_trainer.report.runs import RunResults, read_runs
from smoothloss_trainer.report.tables import section
from smoothloss_trainer.tasks import Input

from .conftest import MakeRun, Page

TEXTS = st.text(st.characters(), max_size=30) | st.sampled_from(
    ["<script>alert(1)</script>", '"><img src=x onerror=y>', "&amp;", "</td></table>", "{{ 7 * 7 }}", "\u202eback", "'"]
)


@pytest.fixture(scope="module")
def bare(make_run: MakeRun) -> RunResults:
    """Return a run without metrics, so that no time goes into charts."""
    run = make_run(scored=False)
    run.metrics_file.unlink()
    return read_runs([run], "test")[0]


def page_of(result: RunResults, texts: list[str]) -> Page:
    """The page with these texts wherever people and models write."""
    label, written, source, reference, name, file, other = texts
    result = replace(result, label=label, hypotheses={name: written}, notes=[other], environment={other: other})
    result = replace(result, settings=result.settings | {"name": label}, results={"bleu_signature": other})
    data = [Data([result], [Input(name, [reference], source, file)], {other: 3}, note=other)]
    added = [section(other, ["", label], [[label, written]], other)]
    report = assemble(
        [result], data, "test", title=label, introduction=other, words=(), step_times={other: [1.0]}, sections=added
    )
    return Page(render(report))


def flat(text: str) -> str:
    """What a page makes of a text: no control characters, whitespace single."""

    def keeps(char: str) -> bool:
        return char.isprintable() or char in "\t\n\r" or unicodedata.category(char).startswith("Z")

    return " ".join("".join(char if keeps(char) else "\ufffd" for char in text).split())


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(TEXTS.filter(str.strip), min_size=7, max_size=7))
def test_no_text_breaks_out(bare: RunResults, texts: list[str]) -> None:
    plain, page = page_of(bare, ["x"] * 7), page_of(bare, texts)
    assert [(tag, sorted(found)) for tag, found in page.tags] == [(tag, sorted(found)) for tag, found in plain.tags]
    assert not [name for _, found in page.tags for name in found if name.startswith("on")]
    shown = flat(page.text)
    for text in texts:
        assert flat(text) in shown
    page.page.encode()  # no half of a surrogate pair


def test_the_lead_names_few_runs_and_the_ends_of_many(bare: RunResults) -> None:
    def lead(count: int) -> str:
        runs = [replace(bare, label=f"run {n}", number=n, results={"bleu": 10.0 * n}) for n in range(count)]
        data = [Data(runs, [])]
        return assemble(runs, data, "test", title="", introduction="", words=(), step_times={}, sections=()).lead

    assert lead(2) == "BLEU on test: run 0 0.0, run 1 10.0"
    assert lead(7) == "BLEU on test: from 0.0 (run 0) to 60.0 (run 6), 7 runs"
