"""Two processes, and batches that are accumulated, train like one batch of all."""

from __future__ import annotations

import json
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
from waiting import free_port, outputs

from smoothloss.similarity import SimilarityTable
from smoothloss_trainer import checkpoint, distributed
from smoothloss_trainer.cli import main
from smoothloss_trainer.config import Recipe
from smoothloss_trainer.distributed import Processes
from smoothloss_trainer.errors import RecipeError, RunError
from smoothloss_trainer.loop import train
from smoothloss_trainer.run import RunDirectory
from smoothloss_trainer.tasks import task_class
from smoothloss_trainer.trainer import Trainer

STILL = {"dropout": 0.0}


def gradients(recipe: Recipe, folder: Path, plan: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return the gradients of a fresh model's step on some batches, and leave the weights as they are."""
    task = task_class(recipe.task)(recipe, None)
    trainer = Trainer(recipe, RunDirectory(folder), task, None, Processes("cpu"))
    trainer.optimizer.step = lambda: None  # type: ignore[method-assign, assignment, misc, return-value]
    trainer._step(plan)
    return [parameter.grad for parameter in trainer.computing.parameters if parameter.grad is not None]


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
    for work in (lambda: processes.sum([1]), lambda: processes.gather([1]), processes.wait):
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


WORKER = """
import json, os, signal, sys
import torch
torch.set_num_threads(1)
from smoothloss_trainer.cli import main
from smoothloss_trainer.trainer import Trainer
step, done = Trainer._step, []
def dying(self, together):
    if len(done) == int(os.environ["STEPS"]):
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(step(self, together))
if os.environ["VICTIM"] == os.environ["RANK"]:
    Trainer._step = dying
for number, words in enumerate(json.loads(sys.argv[1])):
    os.environ["MASTER_PORT"] = str(int(os.environ["PORT"]) + number)
    status = main(["train", *words])
    if status:
        sys.exit(status)
    if os.environ["WORLD_SIZE"] != "1":
        from accelerate.state import AcceleratorState
        AcceleratorState._reset_state(True)
"""


def launch(
    count: int, *jobs: Sequence[str], victim: int = -1, steps: int = 0
) -> list[subprocess.CompletedProcess[str]]:
    """Run training commands one after another in so many processes, of which one may die after some steps."""
    shared = {**os.environ, "WORLD_SIZE": str(count), "MASTER_ADDR": "localhost", "PORT": str(free_port(len(jobs)))}
    shared |= {"VICTIM": str(victim), "STEPS": str(steps), "OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", WORKER, json.dumps(jobs)]
    pipe = subprocess.PIPE
    running = [
        subprocess.Popen(
            command, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=pipe, stderr=pipe, text=True
        )
        for rank in range(count)
    ]
    pairs = zip(running, outputs(running), strict=True)
    return [subprocess.CompletedProcess(command, each.returncode, *texts) for each, texts in pairs]


def errors(ended: list[subprocess.CompletedProcess[str]]) -> list[str]:
    """Return the lines of all processes that tell of an error."""
    assert not any("Traceback" in each.stderr for each in ended)
    return [line for each in ended for line in each.stderr.splitlines() if "error:" in line]


def losses(run: RunDirectory) -> list[float]:
    """Return the training losses that a run has logged."""
    return [line["train_loss"] for line in run.metrics() if "train_loss" in line]


REWARD = {"reward": {"name": "bleu", "normalize": "batch"}, "alpha": 0.4, "embeddings": {"dim": 4, "epochs": 1}}
LOSSES = {
    "lazy": {"name": "tok_seq_lazy", "token_alpha": 0.3, **REWARD},
    "exact": {"name": "seq", "sampler": "edit", "num_samples": 2, **REWARD},
}


SHARDED = "fsdp" if distributed._shards_on_cpus() else "ddp"  # an older torch is refused, as the next test says


def test_a_torch_that_shards_nothing_on_cpus_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "_shards_on_cpus", lambda: False)
    with pytest.raises(RecipeError, match=r"^training\.parallel fsdp on CPUs needs a newer torch, got .*; ddp runs$"):
        Processes("cpu", "fsdp")


def same(run: RunDirectory, other: RunDirectory, keys: Sequence[str]) -> float:
    """Return the largest difference between the metrics of two runs, which have the same lines of these."""
    lines = [[{k: line[k] for k in keys if k in line} for line in each.metrics()] for each in (run, other)]
    ours, theirs = ([line for line in each if line] for each in lines)
    assert [line.keys() for line in ours] == [line.keys() for line in theirs]
    return max(abs(one[k] - two[k]) for one, two in zip(ours, theirs, strict=True) for k in one)


@pytest.mark.slow
def test_any_number_of_processes_trains_as_one_does(
    tmp_path: Path, recipe_values: Callable[..., dict[str, Any]]
) -> None:
    """Dropout, samples, rewards, uneven last steps and clipping included; and goes on where others ended."""
    training = {"log_every": 1, "epochs": 1, "batch_size": 16, "clip": 0.5, "precision": "float64"}
    for name, loss in LOSSES.items():
        (tmp_path / name).write_text(yaml.safe_dump(recipe_values(loss=loss, training=training)))

    def jobs(out: str, accumulate: int, *words: str) -> list[list[str]]:
        shared = ["--training.accumulate", str(accumulate), *words]
        return [[str(tmp_path / name), "--out", str(tmp_path / f"{name}.{out}"), *shared] for name in LOSSES]

    fsdp, short = ("--training.parallel", SHARDED), ("--training.max_steps", "2")
    two = [*jobs("ddp2", 2), *jobs("fsdp2", 2, *fsdp), *jobs("half", 2, *fsdp, *short)]
    four = [*jobs("ddp4", 1), *jobs("fsdp4", 1, *fsdp, "--training.workers", "1")]
    alone = [*jobs("one", 4), *jobs("half", 2, "--resume", "--training.max_steps", "null")]
    for count, given in ((2, two), (4, four)):
        ended = launch(count, *given)
        assert [each.returncode for each in ended] == [0] * count, ended[0].stderr[-2000:]
    assert [main(["train", *words]) for words in alone] == [0] * len(alone)
    for name in LOSSES:
        one = RunDirectory(tmp_path / f"{name}.one")
        assert len(losses(one)) == 4, "13 batches, 4 a step"
        for out in ("ddp2", "fsdp2", "ddp4", "fsdp4", "half"):
            check_same(RunDirectory(tmp_path / f"{name}.{out}"), one)


@pytest.mark.slow
def test_a_loss_that_changes_does_so_in_all_processes(
    tmp_path: Path, recipe_values: Callable[..., dict[str, Any]]
) -> None:
    """The table of the classifier's rows too, which sharded training has to put together."""
    embeddings = {"dim": 4, "epochs": 1, "refresh": True}
    loss = {"name": "tok", "alpha": 0.4, "final_share": 0.5, "embeddings": embeddings}
    training = {"log_every": 1, "epochs": 2, "precision": "float64", "max_steps": 10}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe_values(loss=loss, training=training)))
    words = {name: [str(tmp_path / "r.yaml"), "--out", str(tmp_path / name)] for name in ("one", "ddp", "fsdp")}
    ended = launch(2, words["ddp"], [*words["fsdp"], "--training.parallel", SHARDED])
    assert [each.returncode for each in ended] == [0, 0], ended[0].stderr[-2000:]
    assert main(["train", *words["one"], "--training.accumulate", "2"]) == 0
    one, *others = (RunDirectory(tmp_path / name) for name in words)
    for run in others:
        check_same(run, one)
        tables = [SimilarityTable.load(each.table_file) for each in (run, one)]
        assert torch.equal(tables[0].indices, tables[1].indices)


def check_same(run: RunDirectory, one: RunDirectory) -> None:
    """Compare all that two runs in float64 have come to."""
    assert same(run, one, ["train_loss", "reward", "effective_samples"]) < 1e-12
    if not run.path.name.endswith("half"):  # which was validated once more
        assert same(run, one, ["validation_loss", "validation_bleu"]) < 1e-12
    tensors, expected = (checkpoint.load_checkpoint(each.last)[0] for each in (run, one))
    assert tensors.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(tensors[key], value, rtol=1e-10, atol=1e-12)
    written = [(each.path / "nbest.test.jsonl").read_text() for each in (run, one)]
    hypotheses = [[json.loads(line)["hypotheses"][0]["text"] for line in text.splitlines()] for text in written]
    assert hypotheses[0] == hypotheses[1]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_all_with_one_line_and_any_number_goes_on(
    tmp_path: Path, recipe_values: Callable[..., dict[str, Any]], victim: int
) -> None:
    file, broken, whole = tmp_path / "recipe.yaml", RunDirectory(tmp_path / "broken"), RunDirectory(tmp_path / "whole")
    training = {"log_every": 1, "checkpoint_every": 2, "epochs": 1, "parallel": "ddp" if victim else SHARDED}
    file.write_text(yaml.safe_dump(recipe_values(loss=LOSSES["lazy"], training=training)))
    ended = launch(2, [str(file), "--out", str(broken.path)], victim=victim, steps=3)
    assert [each.returncode for each in ended] == [-9 if rank == victim else 1 for rank in range(2)]
    [line] = errors(ended)
    assert "the other processes of this training cannot be reached" in line
    assert line.endswith("; --resume goes on from the last checkpoint")
    assert main(["train", str(file), "--out", str(broken.path), "--resume"]) == 0
    assert main(["train", str(file), "--out", str(whole.path), "--training.accumulate", "2"]) == 0
    assert same(broken, whole, ["train_loss", "reward", "validation_loss", "validation_bleu"]) < 1e-4
    assert len(losses(broken)) == 7


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
        ended = launch(2, [str(file), "--out", str(run.path)])
    assert all(each.returncode for each in ended)
    [line] = errors(ended)
    assert "is in use, another process is writing there" in line
    assert not run.metrics_file.exists()
