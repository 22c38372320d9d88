from __future__ import annotations

import errno
import importlib
import sys
from pathlib import Path

import pytest
import torch

from smoothloss_trainer.cli import main
from smoothloss_trainer.cli.run import explain
from smoothloss_trainer.cli.signals import Stop
from smoothloss_trainer.errors import RecipeError, RunError


def too_large() -> Exception:
    """Return what torch raises for a tensor that no memory holds."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    return caught.value


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (RecipeError("loss.alpha\n is wrong"), 2, "loss.alpha is wrong"),
        (RunError("training diverged"), 1, "training diverged"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), 1, "runs/x: No space left on device"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device"),
        (OSError("nothing\nmore"), 1, "nothing more"),
        (ImportError("needs h5py: pip install 'x[caption]'"), 1, "needs h5py: pip install 'x[caption]'"),
        (ModuleNotFoundError("No module named 'tqdm'", name="tqdm"), 1, "the trainer needs the package tqdm: pip inst"),
        (MemoryError(), 1, "out of memory: there is none left"),
        (too_large(), 1, "out of memory: "),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Stop(15), 143, "terminated"),
        (Stop(1), 129, "hung up"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
    ],
)
def test_what_ends_a_command_has_a_status_and_a_line(error: BaseException, status: int, line: str) -> None:
    found = explain(error)
    assert found[0] == status and found[1].startswith(line)
    assert "\n" not in found[1]


def test_after_an_interruption_it_says_how_to_go_on() -> None:
    assert explain(Stop(2), lambda: "--resume goes on") == (130, "interrupted; --resume goes on")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `smoothloss score a b` fail with an error that nobody expected."""

    def fail(options: object) -> None:
        raise ZeroDivisionError("of\nnothing")

    monkeypatch.setattr(importlib.import_module("smoothloss_trainer.commands.score"), "run", fail)


def test_a_bug_is_called_one_and_its_traceback_kept(
    failing: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["score", "a", "b"]) == 1
    said = capsys.readouterr().err
    [file] = tmp_path.iterdir()
    assert said == (
        f"smoothloss: error: this is a bug in smoothloss: ZeroDivisionError: of nothing (traceback: {file})\n"
    )
    assert "in fail" in file.read_text()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    assert main(["score", "a", "b"]) == 1
    assert "(SMOOTHLOSS_TRACEBACK=1 shows the traceback)" in capsys.readouterr().err


def test_the_traceback_is_shown_on_request(
    failing: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("SMOOTHLOSS_TRACEBACK", "1")
    assert main(["score", "a", "b"]) == 1
    assert "in fail" in capsys.readouterr().err


def test_a_package_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "smoothloss_trainer.commands.train", raising=False)
    for name in ("loop", "trainer"):
        monkeypatch.delitem(sys.modules, f"smoothloss_trainer.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert main(["train", "x.yaml"]) == 1
    said = capsys.readouterr().err
    assert "tqdm" in said and "pip install 'smoothloss[train]'" in said and said.count("\n") == 1


def test_a_working_folder_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["recipes"]) == 1
    assert capsys.readouterr().err == "smoothloss: error: the working folder has been removed\n"
