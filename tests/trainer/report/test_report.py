"""The whole page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from smoothloss_trainer import report
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.run import RunDirectory

from .conftest import MakeRun, Page, column, read


@pytest.fixture(scope="module")
def page(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Page:
    runs = [make_run("plain"), make_run("smooth & co", bleu=33.333, table=True), make_run("third", bleu=33.334)]
    times = {"MLE": [0.010, 0.012, 0.011], "Tok": [0.022, 0.022]}
    added = [report.section("A table", ["", "BLEU"], [["first <row>", "12.3"]], "what it says")]
    out = tmp_path_factory.mktemp("out") / "deep" / "r.html"
    report.write(runs, out, title="The <title>", introduction="Why & how", step_times=times, sections=added)
    return read(out)


def test_the_page_holds_everything(page: Page) -> None:
    for text in ("The <title>", "Why & how", "first <row>", "12.3", "what it says", "loss.alpha", "2.9.9", "abc123"):
        assert text in page.text
    for text in ("Signature of BLEU: tok:none|smooth:exp", "sentenceBLEU:n4,smooth:exp,eff:yes"):
        assert text in page.text
    for title in ("Runs", "Scores on test", "Curves", "Examples", "Data", "Time of a step", "Settings and versions"):
        assert re.search(f"<h2>{title}</h2>", page.page)


def test_the_page_is_sound_for_readers_of_all_kinds(page: Page) -> None:
    tags = [tag for tag, _ in page.tags]
    assert tags.count("title") == 1 and ("html", {"lang": "en"}) in page.tags
    assert any(attributes.get("name") == "viewport" for _, attributes in page.tags)
    assert "prefers-color-scheme: dark" in page.page
    assert tags.count("table") == tags.count("caption")
    assert all(attributes.get("scope") in ("row", "col") for tag, attributes in page.tags if tag == "th")
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    targets = [*page.attributes("href"), *re.findall(r"url\((#[^)]*)\)", page.page)]
    assert targets and {target.removeprefix("#") for target in targets} <= set(ids)


def test_the_page_needs_nothing_from_outside(page: Page) -> None:
    assert not re.search(r"https?:|//\w|@import|url\((?!#)|javascript", page.page)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"link", "iframe", "object", "embed"}
    assert all(source.startswith("data:image/") for source in page.attributes("src"))


def test_the_best_of_a_column_is_marked_and_ties_are_shown(page: Page) -> None:
    scores = column(page.cells["Scores on test"], "BLEU")
    assert scores == {"plain": "30.00", "smooth & co": "33.33 ★", "third": "33.33 ★"}
    assert "★ and bold: the best of its column" in page.text


def test_the_same_runs_give_the_same_page(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    for name in ("a.html", "b.html"):
        report.write([run, run], tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


@pytest.mark.parametrize("count", [1, 8, 20])
def test_any_number_of_runs_look_different(make_run: MakeRun, tmp_path: Path, count: int) -> None:
    report.write([make_run()] * count, tmp_path / "r.html")
    page = read(tmp_path / "r.html")
    symbols = re.findall(r'<symbol id="key-\d+"[^>]*>(.*?)</symbol>', page.page, re.DOTALL)
    looks = {re.sub(r'(id|href)="[^"]*"', "", symbol) for symbol in symbols}
    assert len(symbols) == len(looks) == count
    assert len(page.cells["Scores on test"]) == count + 1
    assert len({row[0] for row in page.cells["Scores on test"]}) == count + 1  # runs of one name are told apart


def test_a_run_that_is_not_finished_never_looks_so(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run("done"), make_run("half", finished=False, scored=False, training={"epochs": 9})]
    report.write(runs, tmp_path / "r.html")
    page = read(tmp_path / "r.html")
    notice = re.search(r'<ul class="notices".*?</ul>', page.page, re.DOTALL)
    assert notice and "half: interrupted in epoch 3 of 9, step 20, last written" in notice[0]
    assert "no scores on test" in notice[0] and "done" not in notice[0]
    for rows in (page.cells["Scores on test"], page.cells["How far each run has come, and its size"]):
        assert [row[0] for row in rows[1:]] == ["done", "half interrupted"]
    assert "nothing yet" in page.text


def test_a_run_that_has_nothing_yet_is_shown(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("young", scored=False)
    for file in (run.metrics_file, run.last, run.path / "environment.json"):
        file.unlink()
    report.write([run], tmp_path / "r.html")
    page = read(tmp_path / "r.html")
    assert "young: state unknown, no checkpoint that can be read: before the first step" in page.text
    assert 'class="chart"' not in page.page and "metrics.jsonl is not there" in page.text


def test_without_a_test_split_the_validation_part_is_shown(make_run: MakeRun, tmp_path: Path) -> None:
    report.write([make_run(data={"test": {}})], tmp_path / "r.html")
    page = read(tmp_path / "r.html")
    assert column(page.cells["Scores on validation"], "BLEU") == {"plain": "30.00"}
    assert "What the runs wrote about 0" in page.cells


def test_the_report_is_written_when_the_data_are_gone(make_run: MakeRun, corpus: Path, tmp_path: Path) -> None:
    run = make_run("moved")
    text = run.recipe_file.read_text()
    run.recipe_file.write_text(text.replace(str(corpus), str(tmp_path / "gone")))
    references = (corpus / "test.low").read_text()
    (run.path / "references.test.txt").write_text(references)
    report.write([run], tmp_path / "r.html")
    page = read(tmp_path / "r.html")
    assert "The data of moved cannot be read: data." in page.text and "gone" in page.text
    assert references.splitlines()[0] in page.text and "100.0" in page.text
    (run.path / "references.test.txt").unlink()
    report.write([run], tmp_path / "r.html")
    assert "inputs and references are not shown" in read(tmp_path / "r.html").text


def test_what_cannot_be_shown_side_by_side_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="not a run"):
        report.write([RunDirectory(tmp_path / "nowhere")], tmp_path / "r.html")
    with pytest.raises(ValueError, match="at least one run"):
        report.write([], tmp_path / "r.html")
    run, other = make_run(), RunDirectory(tmp_path / "other")
    other.path.mkdir()
    other.recipe_file.write_text("{task: demo, data: {}, model: {}, training: {batch_size: 50}}")
    with pytest.raises(RecipeError, match=r"runs of one task: .* is of the task translation, .* of demo"):
        report.write([run, other], tmp_path / "r.html")
    with pytest.raises(RecipeError, match="split must be one of"):
        report.write([run], tmp_path / "r.html", split="tset")


def test_runs_with_other_inputs_are_not_compared(make_run: MakeRun, corpus: Path, tmp_path: Path) -> None:
    for side in ("up", "low"):
        (tmp_path / f"short.{side}").write_text("".join((corpus / f"test.{side}").read_text().splitlines(True)[:7]))
    other = make_run("other", data={"test": {"test": f"{tmp_path}/short"}})
    report.write([make_run("one"), other], tmp_path / "r.html")
    page = read(tmp_path / "r.html")
    assert "test of other is not that of one: their scores do not compare" in page.text
    assert [row[0] for row in page.cells["What the runs wrote about 0"]] == ["run", "one"]
