from __future__ import annotations

import functools
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smoothloss_trainer.cli import main
from smoothloss_trainer.commands import translate as command
from smoothloss_trainer.models import open_readers
from smoothloss_trainer.run import RunDirectory

Values = Callable[..., dict[str, Any]]


def train(folder: Path, recipe_values: Values, corpus: Path, name: str, **sections: Any) -> str:
    """Train a run on data of its own, which are then removed."""
    data = folder / f"data-{name}"
    shutil.copytree(corpus, data)
    paths = {"train": f"{data}/train", "validation": f"{data}/val", "test": {"test": f"{data}/test"}}
    sections["data"] = {**paths, **sections.get("data", {})}
    recipe = folder / f"{name}.yaml"
    recipe.write_text(yaml.safe_dump(recipe_values(**sections)))
    assert main(["train", str(recipe), "--out", str(folder / name)]) == 0
    shutil.rmtree(data)
    recipe.unlink()
    return str(folder / name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for runs."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def run(folder: Path, recipe_values: Values, corpus: Path) -> str:
    """Return a run that lowers the case of words, and has kept what it wrote for its test part."""
    shutil.copy(corpus / "test.up", folder / "test.up")
    return train(folder, recipe_values, corpus, "run", training={"epochs": 12, "keep_checkpoints": 2})


@pytest.fixture(scope="module")
def moses(folder: Path, recipe_values: Values, corpus: Path) -> str:
    """Return a run of raw text, in lower case and in pieces."""
    pytest.importorskip("sacremoses")
    pytest.importorskip("tokenizers")
    data = {"tokenize": "moses", "lowercase": True, "bpe": 30}
    return train(folder, recipe_values, corpus, "moses", data=data, training={"epochs": 1})


Translate = Callable[..., list[str]]
open_once = functools.cache(open_readers)


@pytest.fixture
def translate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Translate:
    """Return a function that gives the lines which a command writes for text in a pipe."""

    def call(*words: str, text: str = "") -> list[str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        capsys.readouterr()
        assert main(["translate", *words]) == 0, capsys.readouterr().err
        written = capsys.readouterr().out
        assert written.endswith("\n") or not written
        return written.split("\n")[:-1]

    return call


def test_outputs_are_those_of_evaluate(run: str, folder: Path, translate: Translate) -> None:
    written = [line for _, line in sorted(json.loads((Path(run) / "hypotheses.test.json").read_text()).items(),
                                          key=lambda item: int(item[0]))]  # fmt: skip
    assert translate(run, str(folder / "test.up")) == written
    assert translate(run, text=(folder / "test.up").read_text()) == written
    assert translate(run, "-", "--batch_size", "7", text=(folder / "test.up").read_text()) == written
    assert len(set(written)) > 10


def test_n_best_scores_and_json(run: str, translate: Translate) -> None:
    text = "DOG RUNS\n\nCAT"
    best = translate(run, text=text)
    assert len(best) == 3 and best[1] == ""
    rows = [line.split("\t") for line in translate(run, "--n_best", "2", "--scores", text=text)]
    assert [row[0] for row in rows] == ["1", "1", "2", "3", "3"]
    assert [rows[0][2], rows[2][2], rows[3][2]] == best
    assert float(rows[0][1]) >= float(rows[1][1])
    listed = [json.loads(line) for line in translate(run, "--n_best", "2", "--json", text=text)]
    assert [entry["input"] for entry in listed] == [1, 2, 3]
    assert [each["text"] for each in listed[0]["hypotheses"]] == [rows[0][2], rows[1][2]]
    assert listed[0]["hypotheses"][0]["score"] == pytest.approx(float(rows[0][1]), abs=1e-6)


def test_ensembles_checkpoints_and_files(run: str, moses: str, tmp_path: Path, translate: Translate) -> None:
    (tmp_path / "text").write_text("DOG RUNS\nCAT\n")
    [step, *_] = RunDirectory(run).step_files()
    one = translate(run, str(tmp_path / "text"))
    assert translate(run, run, str(tmp_path / "text")) == one
    assert len(translate(run, str(step), text="DOG\n")) == 1
    assert translate(run, "--out", str(tmp_path / "out"), text="DOG RUNS\nCAT\n") == []
    assert (tmp_path / "out").read_text() == "".join(f"{line}\n" for line in one)


def test_raw_text_is_read_and_written_as_people_do(moses: str, translate: Translate) -> None:
    assert translate(moses, text="Dog, RUNS.\n") == translate(moses, text="dog , runs .\n")
    tokens, text = translate(moses, "--tokenized", text="DOG\n"), translate(moses, text="DOG\n")
    assert len(tokens) == len(text) == 1 and "▁" not in tokens[0]


def test_detokenised(moses: str) -> None:
    reader, _, _ = open_readers([moses])
    reader.vocabularies["target"].bpe = None
    reader.vocabularies["target"].words[4:8] = ["dog", ",", "cat", "."]
    assert reader.words([4, 5, 6, 7]) == "dog , cat ."
    assert reader.text([4, 5, 6, 7]) == "dog, cat."


@given(text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("kind", ["run", "moses"])
def test_as_many_lines_come_out_as_went_in(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, translate: Translate, text: str
) -> None:
    monkeypatch.setattr(command, "open_readers", lambda runs, device: open_once(tuple(runs), device))
    lines = text.split("\n")
    lines = lines if lines[-1] else lines[:-1]
    found = translate(request.getfixturevalue(kind), "--max_length", "3", text=text)
    assert len(found) == len(lines if text != "\ufeff" else [])
    assert all(not line for line, source in zip(found, lines, strict=False) if not source.strip("\ufeff \r\t"))


def test_sampling_does_not_depend_on_how_lines_come(run: str, tmp_path: Path, translate: Translate) -> None:
    (tmp_path / "text").write_text("DOG RUNS\nCAT\nBIRD\n")
    words = ["--method", "sample", "--seed", "5", "--batch_size", "2"]
    assert translate(run, *words, text="DOG RUNS\nCAT\nBIRD\n") == translate(run, str(tmp_path / "text"), *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere is not a run"),
        (["RUN", "no-such-file"], "FILE: no such file: no-such-file"),
        (["RUN", "a", "b"], "expected runs and one file, got a and b"),
        (["RUN", "--max_input", "2"], "line 2 has 3 tokens, and --max_input is 2"),
        (["RUN", "--out", "no/where"], "--out: no such folder: no"),
        (["RUN", "MOSES"], "cannot be mixed: their data.tokenize differ"),
        (["RUN", "--device", "abacus"], "device"),
    ],
)
def test_what_is_wrong_is_one_line(
    run: str, moses: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"DOG\nDOG DOG DOG\n")))
    given = {"RUN": run, "MOSES": moses}
    assert main(["translate", *(given.get(word, word) for word in words)]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
