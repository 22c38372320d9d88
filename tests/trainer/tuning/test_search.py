from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from smoothloss_trainer.cli import main
from smoothloss_trainer.recipe import load_recipe
from smoothloss_trainer.run import RunDirectory

optuna = pytest.importorskip("optuna", reason="optuna is not installed")
Values = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.slow


@pytest.fixture
def words(tmp_path: Path, recipe_values: Values) -> list[str]:
    """Return the command line of a search in which there are no files of tests."""
    values = recipe_values(loss={"name": "label_smoothing", "label_smoothing": 0.1}, training={"epochs": 2})
    values["data"]["test"] = {"test": "nowhere/test"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "space.yaml").write_text("loss.label_smoothing: [0.05, 0.5]\noptimizer.lr: {log: [0.001, 0.1]}\n")
    files = [str(tmp_path / "recipe.yaml"), "--space", str(tmp_path / "space.yaml"), "--out", str(tmp_path / "out")]
    return ["tune", *files, "--workers", "2"]


def trials(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / "tune.json").read_text())["trials"]
    return found


def test_a_search_that_is_killed_loses_nothing(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = "import sys; from smoothloss_trainer.cli import main; sys.exit(main(sys.argv[1:]))"
    long = ["--trials", "9", "--training.epochs", "2"]
    process = subprocess.Popen([sys.executable, "-c", command, *words, *long], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 240
    study = None
    while study is None or not [t for t in study.trials if t.state.name == "COMPLETE"]:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
        if study is None and (out / "trial0000").is_dir():  # the storage is whole by then
            study = optuna.load_study(study_name="tune", storage=f"sqlite:///{out / 'study.db'}")
    process.kill()
    process.communicate()
    before = {t.number: (t.params, t.value) for t in study.trials if t.state.name == "COMPLETE"}
    cut = [t for t in study.trials if t.state.name == "RUNNING"]
    count = len(before) + len(cut)
    time.sleep(1)  # the trainings end with it
    assert main([*words, "--trials", str(count)]) == 0
    after = optuna.load_study(study_name="tune", storage=f"sqlite:///{out / 'study.db'}").trials
    assert {t.number: (t.params, t.value) for t in after if t.number in before} == before
    ended = [each for each in trials(out) if each["state"] in ("complete", "pruned")]
    assert len(ended) == count
    for each in cut:  # in its own folder, with its own settings
        assert any(t["folder"] == each.user_attrs["folder"] and t["values"] == each.params for t in ended)
    table = capsys.readouterr().out
    assert "| trial | validation bleu | state | epochs | loss.label_smoothing | optimizer.lr |" in table
    best = max((each for each in ended if each["state"] == "complete"), key=lambda each: each["score"])
    recipe = load_recipe(out / "best.yaml", ["--training.tests", "false"])
    assert recipe.loss.label_smoothing == best["values"]["loss.label_smoothing"]
    run = RunDirectory(out / best["folder"])
    assert run.finished and not list(run.path.glob("*.test.*"))
    assert best["score"] == max(line["validation_bleu"] for line in run.metrics() if "validation_bleu" in line)
    assert (out / "tune.png").read_bytes().startswith(b"\x89PNG") and (out / "report.html").is_file()
    capsys.readouterr()
    (tmp_path / "space.yaml").write_text("loss.label_smoothing: [0.1, 0.5]\n")
    assert main([*words, "--trials", "9"]) == 2
    assert "is a search with space" in capsys.readouterr().err


def test_trials_that_fail_are_told(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--trials", "1", "--training.metric", "bleau"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("smoothloss: error: no trial came to its end: trial0000 failed:") and said.count("\n") == 1
    assert "bleau" in said
    assert [each["state"] for each in trials(tmp_path / "out")] == ["failed"]
