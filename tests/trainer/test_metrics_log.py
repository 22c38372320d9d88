import json
import sys
from pathlib import Path

import pytest

from smoothloss_trainer.errors import RunError
from smoothloss_trainer.metrics_log import MetricsLog
from smoothloss_trainer.run import RunDirectory


def read_board(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what TensorBoard would show: the steps and values of each tag."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_lines_are_what_was_written_and_tensorboard_has_the_same_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = RunDirectory(tmp_path)
    log = MetricsLog(run, tensorboard=True)
    log.write(5, 1, {"train_loss": 2.5, "time": {"forward": 0.75}})
    log.write(10, 1, {"train_loss": 1.5})
    log.close()
    assert log.lines == 2
    assert run.metrics()[0] == {"step": 5, "epoch": 1, "train_loss": 2.5, "time": {"forward": 0.75}}
    assert read_board(tmp_path / "tensorboard") == {
        "train_loss": [(5, 2.5), (10, 1.5)],
        "time/forward": [(5, 0.75)],
    }


def test_what_came_after_a_checkpoint_is_forgotten_on_resumption(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = RunDirectory(tmp_path)
    log = MetricsLog(run, tensorboard=True)
    for step in (5, 10, 15):
        log.write(step, 1, {"train_loss": float(step)})
    log.close()
    again = MetricsLog(run, tensorboard=True)
    again.restore(2, 12)
    again.write(15, 1, {"train_loss": -1.0})
    again.close()
    assert [line["train_loss"] for line in run.metrics()] == [5.0, 10.0, -1.0]
    assert read_board(tmp_path / "tensorboard")["train_loss"] == [(5, 5.0), (10, 10.0), (15, -1.0)]


def test_a_line_is_json_without_tensorboard(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    MetricsLog(run).write(1, 1, {"lr": 0.1})
    assert json.loads(run.metrics_file.read_text()) == {"step": 1, "epoch": 1, "lr": 0.1}
    assert not (tmp_path / "tensorboard").exists()


def test_tensorboard_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    with pytest.raises(RunError, match=r"training.tensorboard needs TensorBoard: pip install .*tensorboard"):
        MetricsLog(RunDirectory(tmp_path), tensorboard=True)


def test_the_board_of_a_run_is_known_from_the_users(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = RunDirectory(tmp_path)
    run.folder.claim(["metrics.jsonl"])
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "events.out.tfevents.1.mine").touch()
    log = MetricsLog(run, tensorboard=True)
    log.write(5, 1, {"train_loss": 2.5})
    log.close()
    assert len([*(tmp_path / "tensorboard").iterdir()]) == 2
    run.folder.clear()
    assert [file.name for file in (tmp_path / "tensorboard").iterdir()] == ["events.out.tfevents.1.mine"]


def test_lines_are_brought_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", synced.append)
    log = MetricsLog(RunDirectory(tmp_path))
    log.sync()
    assert not synced and not log.run.metrics_file.exists()
    log.write(1, 1, {"lr": 0.1})
    log.sync()
    assert len(synced) == 1
