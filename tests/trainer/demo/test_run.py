from __future__ import annotations

import re
from pathlib import Path

import pytest

from smoothloss_trainer.demo.run import RUNS, TIMED_LOSSES, run_demo
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.run import RunDirectory

TINY = ["--data.images", '{"train": 20, "validation": 4, "test": 6}', "--training.epochs", "1", "--model.hidden", "16"]
TINY += ["--training.log_every", "1", "--model.embedding", "16", "--decoding.max_length", "8"]


@pytest.mark.slow
def test_the_demo_ends_in_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run_demo(tmp_path / "demo", TINY)
    assert capsys.readouterr().out.strip() == str(report)
    page = report.read_text(encoding="utf-8")
    for name in RUNS:
        run = RunDirectory(tmp_path / "demo" / name)
        assert run.recipe().name in page
        assert (run.path / "scores.test.json").is_file()
    [picture] = re.findall(r'aria-label="Time of a training step on this machine">(.*?)</svg>', page, re.DOTALL)
    assert all(name in picture for name in TIMED_LOSSES)
    assert len(set(re.findall(r"data:image/[a-z]+;base64,[^\"]+", page))) == 6
    assert not re.search(r"https?://", page)


def test_a_wrong_override_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="epochz"):
        run_demo(tmp_path / "demo", ["--training.epochz", "1"])


@pytest.mark.parametrize("name", ["notes", "mle/notes", "report.html"])
def test_a_folder_of_something_else_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(RecipeError, match="is not empty and not"):
        run_demo(tmp_path, TINY)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [tmp_path / name]
