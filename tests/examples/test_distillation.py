"""The example runs whole on the demo's captions, goes on where it was stopped, and refuses what does not fit."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "distillation"
RESULTS = EXAMPLE.parents[1] / "benchmarks" / "results" / "distillation_coco.json"
SMALL = ["--width", "16", "--sentences", "160", "--min_count", "1", "--epochs", "1", "--k", "4"]


@pytest.fixture(scope="module")
def distill() -> Any:
    """The script, whose folder is where Python looks for its neighbours, as for any script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLE))
        module = importlib.import_module("distill")
        patch.setattr(module, "DEMO_SCENES", 60)
        yield module


@pytest.fixture(scope="module")
def finished(distill: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of all rows with two seeds."""
    out = tmp_path_factory.mktemp("distillation") / "run"
    assert distill.main(["--out", str(out), *SMALL, "--seeds", "1", "2"]) == 0
    return out


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_every_row_is_in_both_tables(distill: ModuleType, finished: Path) -> None:
    table = json.loads((finished / "table.json").read_text())
    lines = (finished / "table.md").read_text().splitlines()
    assert [row["title"] for row in table["rows"][1:]] == [row.title for row in distill.ROWS.values()]
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {row['title']}" for row in table["rows"]]
    for row in table["rows"][1:]:
        perplexities = [run["perplexity"] for run in row["runs"]]
        assert len(perplexities) == 2
        assert 1 < min(perplexities) < max(perplexities) < table["settings"]["classes"]  # less than knowing nothing
        assert row["perplexity"] == pytest.approx(sum(perplexities) / 2)
        assert row["perplexity_sd"] == pytest.approx(abs(perplexities[0] - perplexities[1]) / 2**0.5)
        assert (row["bytes_a_token"] is None) == row["title"].startswith("labels")
        assert row["runs"][0]["environment"]["torch"] == torch.__version__
        assert all(0 < run.get("teacher_mass_known", 0.5) < 1 for run in row["runs"])


def test_a_finished_run_is_not_done_again(distill: ModuleType, finished: Path, capsys: Any) -> None:
    before = _content(finished)
    assert distill.main(["--out", str(finished), *SMALL, "--seeds", "1", "2"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""  # nothing was trained
    assert captured.out == (finished / "table.md").read_text()
    assert _content(finished) == before


@pytest.mark.parametrize("where", ["teacher", "student"])
def test_an_interrupted_run_ends_as_one_that_was_not(
    distill: ModuleType, finished: Path, tmp_path: Path, monkeypatch: Any, capsys: Any, where: str
) -> None:
    language_model = importlib.import_module("language_model")
    command = ["--out", str(tmp_path), *SMALL, "--rows", "top_k-drop", "draws", "--seeds", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(language_model, "CHECKPOINT_STEPS", 2)
        _interrupt(patch, distill, language_model, where)
        assert distill.main(command) == 130
        assert capsys.readouterr().err.splitlines()[-1].endswith("the same command goes on")
    assert not list((tmp_path / "rows").iterdir())
    assert distill.main(command) == 0
    for name in ("top_k-drop.2.json", "draws.2.json"):
        got, expected = (json.loads((folder / "rows" / name).read_text()) for folder in (tmp_path, finished))
        assert got["loss"] == expected["loss"]  # to the last bit


def _interrupt(patch: Any, distill: ModuleType, language_model: ModuleType, where: str) -> None:
    """Let Ctrl-C come at the teacher's second checkpoint, or at the first student's end."""
    if where == "student":
        patch.setattr(distill, "write_json", _raise_at_call(distill.write_json, 3))  # settings, teacher, this
    else:
        patch.setattr(language_model, "save_checkpoint", _raise_at_call(language_model.save_checkpoint, 2))


def _raise_at_call(function: Any, number: int) -> Any:
    calls = []

    def counted(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == number:
            raise KeyboardInterrupt
        function(*arguments)

    return counted


def test_rows_of_labels_need_no_teacher(distill: ModuleType, tmp_path: Path) -> None:
    assert distill.main(["--out", str(tmp_path), *SMALL, "--rows", "labels", "label_smoothing", "--seeds", "1"]) == 0
    assert not (tmp_path / "teacher.safetensors").exists()
    assert len(json.loads((tmp_path / "table.json").read_text())["rows"]) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--width", "32"], "another width"),
        (["--train", "{missing}", "--test", "{missing}"], "no such file"),
        (["--train", "{empty}", "--test", "{empty}"], "no sentence"),
        (["--k", "1000"], "another k"),
    ],
)
def test_what_does_not_fit_is_one_line(
    distill: ModuleType, finished: Path, tmp_path: Path, capsys: Any, words: list[str], said: str
) -> None:
    (tmp_path / "empty").write_text("\n \n")
    names = {"{missing}": tmp_path / "missing", "{empty}": tmp_path / "empty"}
    given = [str(names.get(word, word)) for word in words]
    assert distill.main(["--out", str(finished), *SMALL, *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_more_words_than_there_are_is_one_line(distill: ModuleType, tmp_path: Path, capsys: Any) -> None:
    words = ["--out", str(tmp_path), *SMALL, "--k", "100000", "--rows", "top_k-drop"]
    assert distill.main(words) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "k: got 100000" in line


def test_the_page_shows_the_rows_that_are_kept(distill: ModuleType) -> None:
    kept = json.loads(RESULTS.read_text())
    rows = [distill.summary(row["title"], row["runs"], row["bytes_a_token"]) for row in kept["rows"]]
    page = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    assert distill.markdown(rows) in page
    assert [row["title"] for row in kept["rows"][1:]] == [row.title for row in distill.ROWS.values()]
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page) if "://" not in link]
    assert [link for link in links if not (EXAMPLE / link).exists()] == []


def test_coco_becomes_text(distill: ModuleType, tmp_path: Path, capsys: Any) -> None:
    coco_text = importlib.import_module("coco_text")
    captions = {"1": ["a cat", "one cat"], "2": ["a dog", "one dog"], "3": ["a bird", "one bird"], "4": ["left out"]}
    split = {coco_text.SPLIT: {"restval": [1], "val": [2], "test": [3]}}
    for name, content in (("captions", captions), ("split", split), ("other", {})):
        (tmp_path / name).write_text(json.dumps(content))
    words = [str(tmp_path / "captions"), str(tmp_path / "split"), str(tmp_path / "text")]
    assert coco_text.main(words) == 0
    written = {path.name: path.read_text() for path in (tmp_path / "text").iterdir()}
    assert written == {"train.txt": "a cat\none cat\n", "validation.txt": "a dog\n", "test.txt": "a bird\n"}
    assert coco_text.main([words[0], str(tmp_path / "other"), words[2]]) == 2
    assert "expected" in capsys.readouterr().err.splitlines()[-1]
