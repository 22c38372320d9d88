"""Two processes, and batches that are accumulated, train like one batch of all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from smoothloss_trainer import checkpoint
from smoothloss_trainer.config import Recipe
from smoothloss_trainer.distributed import Processes
from smoothloss_trainer.errors import RecipeError, RunError
from smoothloss_trainer.loop import Trainer, train
from smoothloss_trainer.run import RunDirectory
from smoothloss_trainer.tasks import task_class

STILL = {"dropout": 0.0}


def gradients(recipe: Recipe, folder: Path, plan: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return the gradients of a fresh model's step on some batches, and leave the weights as they are."""
    task = task_class(recipe.task)(recipe, None)
    trainer = Trainer(recipe, RunDirectory(folder), task, None, Processes("cpu"))
    trainer.optimizer.step = lambda: None  # type: ignore[method-assign, assignment, misc, return-value]
    trainer._step(plan)
    return [parameter.grad for parameter in trainer.parameters if parameter.grad is not None]


@pytest.mark.parametrize("count", ["x", "0", "-1", "1.5"])
def test_a_world_size_that_is_none(monkeypatch: pytest.MonkeyPatch, count: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", count)
    with pytest.raises(RecipeError, match="WORLD_SIZE must be a whole number from 1 on"):
        Processes("cpu")


def test_others_that_are_not_there_are_no_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "")
    processes = Processes("cpu")
    assert processes.count == 1
    processes.count = 2

    def fail(*arguments: object) -> None:
        raise RuntimeError("Connection reset by peer")

    monkeypatch.setattr(torch.distributed, "all_reduce", fail)
    monkeypatch.setattr(torch.distributed, "barrier", fail)
    for work in (lambda: processes.sum([1]), lambda: processes.gather(torch.ones(1)), processes.wait):
        with pytest.raises(RunError, match="cannot be reached: Connection reset by peer"):
            work()


def test_accumulated_batches_are_one_batch(tmp_path: Path, make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(model=STILL, training={"clip": 0.0})
    batches = [list(range(16)), list(range(16, 24)), list(range(24, 27))]
    together = gradients(recipe, tmp_path, [list(range(27))])
    apart = gradients(recipe, tmp_path, batches)
    assert len(together) == len(apart) > 5
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_steps_are_counted_by_the_batches_they_take(tmp_path: Path, make_recipe: Callable[..., Recipe]) -> None:
    run = RunDirectory(tmp_path / "run")
    train(make_recipe(training={"accumulate": 5, "epochs": 2, "log_every": 1}), run)
    # 200 pairs are 13 batches of 16, three steps of at most 5 batches.
    assert [line["step"] for line in run.metrics() if "train_loss" in line] == [1, 2, 3, 4, 5, 6]


def test_bfloat16_trains(tmp_path: Path, make_recipe: Callable[..., Recipe]) -> None:
    run = RunDirectory(tmp_path / "run")
    train(make_recipe(training={"precision": "bfloat16", "epochs": 6, "log_every": 13}), run)
    losses = [line["train_loss"] for line in run.metrics() if "train_loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    tensors = checkpoint.load_checkpoint(run.last)[0]
    assert {value.dtype for name, value in tensors.items() if name.startswith("model.")} == {torch.float32}


def test_every_line_says_where_the_time_went(tmp_path: Path, make_recipe: Callable[..., Recipe]) -> None:
    run = RunDirectory(tmp_path / "run")
    loss = {"name": "tok_seq_lazy", "alpha": 0.4, "token_alpha": 0.3, "reward": {"name": "bleu", "normalize": "batch"}}
    train(make_recipe(loss=loss), run)
    for line in run.metrics():
        if "train_loss" in line:
            assert set(line["time"]) == {"data", "sampling", "reward", "forward", "loss", "backward", "optimizer"}
            assert sum(line["time"].values()) == pytest.approx(1.0)


def launch(recipe: Path, out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Train in two processes on the CPU."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += [
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--num_cpu_threads_per_process",
        "1",
    ]
    command += ["-m", "smoothloss_trainer", "train", str(recipe), "--out", str(out), *words]
    environment = {key: value for key, value in os.environ.items() if key not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def losses(run: RunDirectory) -> list[float]:
    """Return the training losses that a run has logged."""
    return [line["train_loss"] for line in run.metrics() if "train_loss" in line]


@pytest.mark.slow
def test_two_processes_train_like_one_with_twice_the_batch(
    tmp_path: Path, recipe_values: Callable[..., dict[str, Any]], make_recipe: Callable[..., Recipe]
) -> None:
    pytest.importorskip("accelerate")
    shared = {"model": STILL, "training": {"log_every": 1, "epochs": 2, "clip": 0.5}}
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe_values(**shared)))
    two, one = RunDirectory(tmp_path / "two"), RunDirectory(tmp_path / "one")
    done = launch(file, two.path)
    assert done.returncode == 0, done.stderr[:2000]
    shared["training"]["accumulate"] = 2
    expected = train(make_recipe(**shared), one)
    assert len(losses(two)) == len(two.metrics()) - 2 == 14, "written once"
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    tensors, others = (checkpoint.load_checkpoint(run.last)[0] for run in (two, one))
    for name, value in others.items():
        if name.startswith("model."):
            torch.testing.assert_close(tensors[name], value, rtol=1e-3, atol=1e-4)
    assert done.stdout.count("test: bleu") == 1
    assert sorted(file.name for file in two.path.rglob("*")) == sorted(file.name for file in one.path.rglob("*"))
    assert set(expected) == {"test"}


@pytest.mark.slow
def test_two_processes_go_on_as_if_they_had_not_stopped(
    tmp_path: Path, recipe_values: Callable[..., dict[str, Any]], make_recipe: Callable[..., Recipe]
) -> None:
    pytest.importorskip("accelerate")
    loss = {"name": "tok_seq_lazy", "alpha": 0.4, "token_alpha": 0.3}
    loss["reward"] = {"name": "bleu", "normalize": "batch"}
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe_values(loss=loss, training={"log_every": 2, "epochs": 2})))
    whole, broken = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "broken")
    assert launch(file, whole.path).returncode == 0
    assert launch(file, broken.path, "--training.max_steps", "5").returncode == 0
    resumed = launch(file, broken.path, "--resume", "--training.max_steps", "null")
    assert resumed.returncode == 0, resumed.stderr[:2000]
    kept = [[line for line in run.metrics() if "train_loss" in line] for run in (whole, broken)]
    for one, other in zip(*kept, strict=True):
        assert {key: one[key] for key in ("step", "train_loss", "reward")} == {
            key: other[key] for key in ("step", "train_loss", "reward")
        }
    alone = make_recipe(loss=loss, training={"log_every": 2, "epochs": 2})
    with pytest.raises(RecipeError, match="it was trained by 2 processes, these are 1"):
        train(alone, broken, resume=True)


def test_several_processes_cannot_share_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="device must be auto, cpu or cuda for several processes, got 'cuda:1'"):
        Processes("cuda:1")


def test_what_the_first_process_finds_is_told_to_all() -> None:
    alone = Processes("cpu")
    assert alone.first(lambda: [1]) is True
    assert alone.first(lambda: None) is False
    with pytest.raises(RecipeError, match="no"):
        alone.first(lambda: (_ for _ in ()).throw(RecipeError("no")))


@pytest.mark.slow
def test_two_processes_say_once_that_a_run_is_in_use(
    tmp_path: Path, recipe_values: Callable[..., dict[str, Any]]
) -> None:
    pytest.importorskip("accelerate")
    file, run = tmp_path / "recipe.yaml", RunDirectory(tmp_path / "run")
    file.write_text(yaml.safe_dump(recipe_values()))
    with run.lock():
        done = launch(file, run.path)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if "smoothloss" in line and "error:" in line]
    assert len(said) == 1 and "is in use, another process is writing there" in said[0]
    assert "Traceback" not in done.stderr.partition("smoothloss: error:")[0]
    assert not run.metrics_file.exists()
