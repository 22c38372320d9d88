from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from smoothloss_trainer.cli import main

Values = Callable[..., dict[str, Any]]


@pytest.fixture
def recipe(tmp_path: Path, recipe_values: Values) -> Path:
    """Return a recipe file that trains for six steps."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_values(training={"max_steps": 6}, loss={"name": "tok", "alpha": 0.3})))
    return path


def test_train_evaluate_and_look_into_the_table(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["train", str(recipe), "--out", str(out), "--seed", "3"]) == 0
    assert "test: bleu" in capsys.readouterr().out
    names = {file.name for file in out.iterdir()}
    assert {"recipe.yaml", "environment.json", "metrics.jsonl", "table.safetensors", "scores.test.json"} <= names
    assert yaml.safe_load((out / "recipe.yaml").read_text())["seed"] == 3
    assert main(["evaluate", str(out), "--split", "validation", "--beam_size", "4"]) == 0
    assert "validation: bleu" in capsys.readouterr().out
    assert (out / "scores.validation.json").is_file()
    page = (out / "report.html").read_text()
    assert "Where the time of training goes" in page
    assert "backward" in page
    compared = str(tmp_path / "compared.html")
    assert main(["report", str(out), str(out), "--out", compared]) == 0
    assert Path(compared).read_text().count("whole recipe") == 2
    vocabulary = str(out / "vocabulary.target.json")
    assert main(["table", "show", str(out / "table.safetensors"), "--vocabulary", vocabulary, "dog"]) == 0
    assert "dog (seen" in capsys.readouterr().out
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("dog 1 0\ncat 0.9 0.1\n")
    built = tmp_path / "t.safetensors"
    assert main(["table", "build", str(vectors), "--vocabulary", vocabulary, "--out", str(built)]) == 0
    assert "words with a vector: 2 of 10" in capsys.readouterr().out
    assert main(["train", str(recipe), "--out", str(out), "--seed", "3", "--resume"]) == 0


def test_search_sample_average_and_mix(
    tmp_path: Path, recipe_values: Values, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, runs = tmp_path / "recipe.yaml", [str(tmp_path / name) for name in ("a", "b")]
    recipe.write_text(yaml.safe_dump(recipe_values(training={"keep_checkpoints": 2})))
    for seed, out in enumerate(runs):
        assert main(["train", str(recipe), "--out", out, "--seed", str(seed)]) == 0
    capsys.readouterr()
    assert main(["average", runs[0], "--last", "2"]) == 0
    average = capsys.readouterr().out.strip()
    before = (tmp_path / "a" / "scores.test.json").read_text()
    assert main(["evaluate", average]) == 2
    assert "needs --out" in capsys.readouterr().err
    options = ["--n_best", "3", "--beam_size", "4", "--no_repeat_ngram_size", "2", "--suppress_unk"]
    for checkpoints in ([average], [*runs, average]):
        out = tmp_path / f"out{len(checkpoints)}"
        assert main(["evaluate", *checkpoints, "--out", str(out), *options]) == 0
        assert "test: bleu" in capsys.readouterr().out
        lines = [json.loads(line) for line in (out / "nbest.test.jsonl").read_text().splitlines()]
        assert len(lines) == 30
        assert all(len(line["hypotheses"]) == 3 for line in lines)
        scores = json.loads((out / "scores.test.json").read_text())
        assert (scores["beam_size"], scores["no_repeat_ngram_size"], scores["suppress_unk"]) == (4, 2, True)
    assert (tmp_path / "a" / "scores.test.json").read_text() == before
    assert main(["evaluate", runs[0], "--method", "sample", "--top_p", "0.9", "--temperature", "0.5"]) == 0
    assert json.loads((tmp_path / "a" / "scores.test.json").read_text())["method"] == "sample"
    capsys.readouterr()
    assert main(["evaluate", runs[0], "--n_best", "3"]) == 2
    assert "decoding.n_best must be at most decoding.beam_size (2), got 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nope.yaml"], "no such recipe"),
        (["train", "RECIPE", "--training.epoch", "3"], "training.epoch"),
        (["train", "RECIPE", "--loss.alpha", "2"], "loss.alpha must be a number from 0 to 1, got 2"),
        (["train", "RECIPE", "--data.train", "/nope"], "data.train: no such file: /nope.up"),
        (["train", "RECIPE", "--data.test.x", "/nope"], "data.test.x: no such file: /nope.up"),
        (["train", "RECIPE", "--device", "abacus"], "device must be auto"),
        (["train", "RECIPE", "--device", "cuda:99"], "CUDA devices here"),
        (["train", "RECIPE", "--resume"], "is not a run"),
        (["train", "RECIPE", "--resume", "--overwrite"], "exclude each other"),
        (["train", "RECIPE", "--loss.embeddings.path", "/nope"], "loss.embeddings.path: no such file"),
        (["evaluate", "nowhere"], "nowhere is not a run"),
        (["evaluate", "here", "there"], "needs --out"),
        (["evaluate", "here", "there", "--out", "both"], "here is not a run"),
        (["average", "nowhere"], "nowhere is not a run"),
        (["table", "show", "nope", "--vocabulary", "nope", "dog"], "--vocabulary: no such file"),
    ],
)
def test_a_users_error_is_one_line_before_anything_starts(
    tmp_path: Path,
    recipe: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(recipe) if word == "RECIPE" else word for word in arguments]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert len(printed.err.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_help_explains(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "smoothloss train multi30k/mle" in capsys.readouterr().out
    assert main(["train", str(recipe), "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--loss.token_alpha" in shown
    assert "Token level's share" in shown


def test_options_that_would_do_nothing_are_refused_before_data_are_read(
    tmp_path: Path, recipe_values: Values, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_values(training={"max_steps": 1, "epochs": 1})))
    run = str(tmp_path / "run")
    assert main(["train", str(recipe), "--out", run]) == 0
    capsys.readouterr()
    for words, message in (
        (["--n_best", "9"], "decoding.n_best must be at most decoding.beam_size (2), got 9"),
        (["--top_k", "3"], "--top_k does nothing with --method beam: it is of --method sample"),
        (["--method", "sample", "--beam_size", "3"], "--beam_size does nothing with --method sample"),
    ):
        for command in (["evaluate", run], ["translate", run, "no-such-file"]):
            assert main([*command, *words]) == 2
            assert message in capsys.readouterr().err
