from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from smoothloss.similarity import SimilarityTable
from smoothloss.trainer import report
from smoothloss.trainer.errors import RecipeError
from smoothloss.trainer.run import RunDirectory
from smoothloss.trainer.vocabulary import SPECIAL_TOKENS, Vocabulary

WORDS = ["red", "crimson", "blue", "circle", "disc"]


def make_run(folder: Path, name: str, cider: float, *, table: bool = False) -> RunDirectory:
    run = RunDirectory(folder)
    folder.mkdir()
    loss: dict[str, Any] = {"name": "tok", "alpha": 0.25, "token_tau": 0.2} if table else {"name": "mle"}
    values = {"task": "captioning", "name": name, "seed": 7, "loss": loss, "model": {}, "data": {"captions": "c.json"}}
    run.recipe_file.write_text(yaml.safe_dump(values))
    vocabulary = Vocabulary.build([WORDS])
    vocabulary.save(folder / "vocabulary.target.json")
    lines: list[dict[str, Any]] = []
    for epoch in (1, 2):
        lines += [{"step": 10 * epoch - half, "epoch": epoch, "train_loss": 3.0 - epoch, "lr": 1e-3} for half in (5, 0)]
        lines.append(
            {"step": 10 * epoch, "epoch": epoch, "validation_loss": 2.5 - epoch / 8, "validation_cider": 10.0 * epoch}
        )
    run.metrics_file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (folder / "scores.test.json").write_text(
        json.dumps({"bleu_1": 50.0, "bleu_4": 20.0, "cider": cider, "beam_size": 3})
    )
    (folder / "hypotheses.test.json").write_text(json.dumps({"7": f"a {name} <circle>", "8": "red"}))
    (folder / "environment.json").write_text(json.dumps({"versions": {"torch": "2.9.9"}, "commit": "abc123"}))
    if table:
        vectors = torch.randn(len(vocabulary), 8, generator=torch.Generator().manual_seed(0))
        built = SimilarityTable.from_embeddings(vectors, k=4, tau=0.2, exclude=SPECIAL_TOKENS)
        built.save(run.table_file)
    return run


class Balanced(HTMLParser):
    """Fails on a tag that is closed without being open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "line", "circle", "br"):
            self.open.append(tag)
        self.outside += [
            value or "" for key, value in attrs if key in ("src", "href") and not (value or "").startswith("data:")
        ]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def page(tmp_path: Path) -> str:
    runs = [make_run(tmp_path / "a", "plain", 30.0), make_run(tmp_path / "b", "smooth & co", 33.333, table=True)]
    picture = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    examples = [
        report.Example("7", ["a reference", "another one"], picture),
        report.Example("8", ["third"], source="ein Kreis"),
    ]
    times = {"MLE": [0.010, 0.012, 0.011], "Tok": [0.022, 0.022]}
    report.write(runs, tmp_path / "out" / "r.html", title="The title", examples=examples, step_times=times)
    return (tmp_path / "out" / "r.html").read_text(encoding="utf-8")


def test_the_page_holds_everything(page: str) -> None:
    for text in (
        "The title",
        "plain",
        "smooth &amp; co",
        "33.33",
        "30.00",
        "a plain &lt;circle&gt;",
        "a reference",
        "third",
    ):
        assert text in page
    for text in (
        "ein Kreis",
        "loss.alpha",
        "0.25",
        "torch",
        "2.9.9",
        "abc123",
        "crimson",
        "11.0",
        "2.00",
        "2.250",
        "dark",
    ):
        assert text in page
    assert page.count("<svg") == 3  # training and validation loss, CIDEr
    assert page.count("<polyline") == 6


def test_the_page_is_sound_and_needs_nothing_from_outside(page: str) -> None:
    parser = Balanced()
    parser.feed(page)
    assert parser.open == [] and parser.outside == []
    assert not re.search(r"https?:|//\w|@import|url\(", page)
    assert "<script" not in page


def test_the_best_value_of_a_column_is_marked(page: str) -> None:
    marked = re.findall(r'class="number best">([^<]*)<', page)
    assert marked.count("33.33") == 1 and "30.00" not in marked
    assert marked.count("50.00") == 2  # a tie


def test_similarity_shows_neighbours_and_mass(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", "smooth", 1.0, table=True)
    vocabulary = run.vocabularies()["target"]
    table = SimilarityTable.load(run.table_file, len(vocabulary))
    report.write([run], tmp_path / "r.html", words=["blue", "unheard"])
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    token = vocabulary.tokens["blue"]
    dense = table.dense()[token]
    neighbour = int(table.indices[token][1])
    assert "<b>blue</b>" in page and "unheard" not in page
    assert f"{vocabulary.words[neighbour]} <small>{100 * float(dense[neighbour]):.1f} %</small>" in page
    assert f">{100 * float(dense[token]):.1f} %<" in page


def test_shares_of_time_are_averaged_over_the_lines_that_have_them(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, name, 40.0) for name in ("a", "b")]
    times = [{"forward": 0.5, "loss": 0.5}, {"forward": 0.3, "loss": 0.5, "reward": 0.2}]
    lines = [{"step": step, "epoch": 3, "train_loss": 1.0, "time": time} for step, time in enumerate(times, 30)]
    with runs[0].metrics_file.open("a") as file:
        file.write("".join(f"{json.dumps(line)}\n" for line in lines))
    report.write(runs, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    section = page[page.index("Where the time of training goes") :].split("</section>")[0]
    assert [part.strip() for part in re.findall(r"<td[^>]*>([^<]* %|–)</td>", section)] == [
        "40.0 %", "50.0 %", "10.0 %", "–", "–", "–",
    ]  # fmt: skip


def test_a_run_without_results_is_shown_as_far_as_it_went(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", "young", 1.0)
    for name in ("scores.test.json", "hypotheses.test.json", "metrics.jsonl", "environment.json"):
        (run.path / name).unlink()
    report.write([run], tmp_path / "r.html", examples=[report.Example("7", ["reference"])])
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "young" in page and "<svg" not in page and "reference" in page


def test_what_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="not a run"):
        report.write([RunDirectory(tmp_path / "nowhere")], tmp_path / "r.html")
    with pytest.raises(ValueError, match="at least one run"):
        report.write([], tmp_path / "r.html")
    run = make_run(tmp_path / "a", "torn", 1.0)
    (run.path / "scores.test.json").write_text("{")
    with pytest.raises(RecipeError, match=r"cannot read .*scores\.test\.json"):
        report.write([run], tmp_path / "r.html")
