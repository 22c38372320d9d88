import os
from pathlib import Path

import pytest

from smoothloss_trainer.processes import last_words, start_training


def test_the_package_is_the_one_that_starts_it_wherever_it_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the working folder has one of the same name."""
    (tmp_path / "smoothloss").mkdir()
    (tmp_path / "smoothloss" / "__init__.py").write_text("raise SystemExit('the wrong one')\n")
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "logs" / "run.log"
    assert start_training(["nowhere.yaml"], log, 1).wait(timeout=120) == 2
    assert last_words(log).startswith(f"smoothloss: error: no such recipe: {tmp_path / 'nowhere.yaml'}, nor")
    with log.open("a") as file:
        file.write("going on\r50 %\r100 %\n\n")
    assert last_words(log) == "100 %"


def test_cores_are_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []
    monkeypatch.setattr("subprocess.Popen", lambda *args, **options: seen.append(options["env"]))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for jobs in (1, 3, 20):
        start_training([], tmp_path / "log", jobs)
    assert [environment["OMP_NUM_THREADS"] for environment in seen] == ["8", "2", "1"]


def test_a_log_without_words(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("\n \n")
    assert last_words(tmp_path / "log") == "it said nothing"
