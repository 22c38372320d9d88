from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from smoothloss_trainer.cli import main
from smoothloss_trainer.errors import RecipeError, RunError
from smoothloss_trainer.recipe import load_recipe
from smoothloss_trainer.run import RunDirectory
from smoothloss_trainer.tuning import study as module
from smoothloss_trainer.tuning import tune

optuna = pytest.importorskip("optuna")
Values = Callable[..., dict[str, Any]]


class Here:
    """Stands for Children: trains at once in this process."""

    stop_at: int | None = None  # the number of the training that is interrupted
    words: list[list[str]]

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def start(self, words: Sequence[str], log: Path, jobs: int) -> Any:
        type(self).words.append(list(words))
        if len(type(self).words) - 1 == self.stop_at:
            raise KeyboardInterrupt
        return Ended(main(["train", *words]))


class Ended:
    def __init__(self, status: int) -> None:
        self.status: int | None = None
        self.last = status

    def poll(self) -> int | None:
        """Still running at the first look."""
        before, self.status = self.status, self.last
        return before

    def terminate(self) -> None:
        pass

    def wait(self) -> None:
        pass


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> type[Here]:
    monkeypatch.setattr(module, "Children", Here)
    monkeypatch.setattr(module, "_WAIT", 0)
    Here.words, Here.stop_at = [], None
    return Here


@pytest.fixture
def space(tmp_path: Path, recipe_values: Values) -> Path:
    values = recipe_values(
        loss={"name": "label_smoothing", "label_smoothing": 0.2}, optimizer={"lr": 0.03}, training={"epochs": 1}
    )
    values["data"]["test"] = {"test": "not/there"}
    values["tune"] = {"space": {"loss.label_smoothing": [0.05, 0.5], "optimizer.lr": "log"}, "trials": 3}
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def trials(out: Path) -> dict[int, Any]:
    storage = optuna.storages.RDBStorage(f"sqlite:///{out / 'study.db'}")
    found = optuna.load_study(study_name="smoothloss", storage=storage).trials
    storage.remove_session()
    storage.engine.dispose()
    return {trial.number: trial for trial in found}


def test_the_best_settings_become_a_recipe(space: Path, tmp_path: Path, here: type[Here]) -> None:
    out = tmp_path / "out"
    assert main(["tune", str(space), "--out", str(out), "--training.batch_size", "32"]) == 0
    content = json.loads((out / "tune.json").read_text())
    first, *_ = content["trials"]
    assert len(content["trials"]) == 3 and first["score"] == max(row["score"] for row in content["trials"])
    own = next(row for row in content["trials"] if row["trial"] == 0)
    assert own["settings"] == {"loss.label_smoothing": 0.2, "optimizer.lr": 0.03}
    values = yaml.safe_load(space.read_text())
    values["data"]["test"] = {}
    space.write_text(yaml.safe_dump(values))  # the recipe needs its test files again, and there are none
    best = load_recipe(out / "best.yaml")
    assert best.loss.label_smoothing == first["settings"]["loss.label_smoothing"]
    assert best.training.batch_size == 32 and best.training.test
    assert (out / "tune.png").stat().st_size > 1000 and "Trials of tiny" in (out / "report.html").read_text()
    assert not list(out.rglob("*.test.*")) and len(list(out.rglob("scores.validation.json"))) >= 1


@pytest.mark.parametrize("name", ["mine.db?v2", "t#?x%41", "a b;c=&d", "ü"])
def test_a_study_is_in_its_folder_whatever_that_is_called(
    space: Path, tmp_path: Path, here: type[Here], name: str
) -> None:
    (tmp_path / "mine.db").write_text("of the user")
    before = {*tmp_path.iterdir()}
    assert main(["tune", str(space), "--out", str(tmp_path / name), "--trials", "1"]) == 0
    assert (tmp_path / name / "study.db").is_file() and (tmp_path / "mine.db").read_text() == "of the user"
    assert {*tmp_path.iterdir()} - before == {tmp_path / name}


def test_an_interrupted_study_loses_no_trial(space: Path, tmp_path: Path, here: type[Here]) -> None:
    out = tmp_path / "out"
    here.stop_at = 1
    with pytest.raises(KeyboardInterrupt):
        tune(space, out)
    before = trials(out)
    assert [trial.state.name for trial in before.values()] == ["COMPLETE", "RUNNING"]
    here.stop_at = None
    tune(space, out)
    after = trials(out)
    assert len(after) == 3 and all(trial.state.is_finished() for trial in after.values())
    assert after[0].value == before[0].value and after[1].params == before[1].params
    assert [Path(words[0]).stem for words in here.words] == ["trial0", "trial1", "trial1", "trial2"]
    done = len(here.words)
    tune(space, out, trials=4)
    assert len(here.words) == done + 1 and len(trials(out)) == 4


def test_another_study_in_the_folder(space: Path, tmp_path: Path, here: type[Here]) -> None:
    out = tmp_path / "out"
    tune(space, out, trials=1)
    for words in (["--optimizer.lr", "0.01"], ["--training.epochs", "2"]):
        with pytest.raises(RecipeError, match=rf"another study, {words[0][2:]} is .* there"):
            tune(space, out, overrides=words)
    values = yaml.safe_load(space.read_text())
    space.write_text(yaml.safe_dump(values | {"tune": {"space": {"optimizer.lr": [0.01, 0.05]}}}))
    with pytest.raises(RecipeError, match=r"another study, tune\.space"):
        tune(space, out)


def test_all_trials_fail(space: Path, tmp_path: Path, here: type[Here]) -> None:
    values = yaml.safe_load(space.read_text())
    values["tune"] = {"space": {"loss.name": {"choices": ["tok", "seq"]}}, "trials": 2}  # neither has a share
    space.write_text(yaml.safe_dump(values))
    with pytest.raises(RunError, match=r"no trial came to a score: .*loss.alpha must be above 0"):
        tune(space, tmp_path / "out")


def test_a_trial_that_falls_behind_is_stopped(space: Path, tmp_path: Path, here: type[Here]) -> None:
    values = yaml.safe_load(space.read_text())
    values["tune"] = {"space": {"optimizer.lr": {"choices": [0.03, 1e-9]}}, "trials": 4, "startup": 1, "warmup": 0}
    values["training"]["epochs"] = 2
    space.write_text(yaml.safe_dump(values))

    class Stopped(Ended):
        """Has validated once when it is looked at first."""

    def start(self: Here, words: Sequence[str], log: Path, jobs: int) -> Any:
        status = main(["train", *words])
        run = RunDirectory(words[2])
        lines = run.metrics_file.read_text().splitlines(keepends=True)
        first = next(number for number, line in enumerate(lines) if "validation_bleu" in line)
        run.metrics_file.write_text("".join(lines[: first + 1]))
        return Stopped(status)

    here.start = start  # type: ignore[method-assign]
    tune(space, tmp_path / "out")
    states = {trial.params["optimizer.lr"]: trial.state.name for trial in trials(tmp_path / "out").values()}
    assert states == {0.03: "COMPLETE", 1e-9: "PRUNED"}


@pytest.mark.slow
def test_two_workers_share_a_storage_that_outlives_a_kill(space: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [sys.executable, "-m", "smoothloss_trainer", "tune", str(space), "--out", str(out), "--workers", "2"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ends = time.monotonic() + 120
    finished: dict[int, float] = {}
    while not finished and time.monotonic() < ends:
        time.sleep(0.5)
        if (out / "trial0").is_dir() and (out / "study.db").is_file():
            finished = {number: trial.value for number, trial in trials(out).items() if trial.value is not None}
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert finished
    assert subprocess.run(words, check=False, capture_output=True).returncode == 0
    after = trials(out)
    assert len(after) == 3 and {number: after[number].value for number in finished} == finished
