"""Batches are the same whoever prepares them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from smoothloss_trainer.config import Recipe
from smoothloss_trainer.errors import RecipeError, RunError
from smoothloss_trainer.feed import Feed, default_workers
from smoothloss_trainer.loop import train
from smoothloss_trainer.run import RunDirectory
from smoothloss_trainer.tasks import Batch, task_class

CPU = torch.device("cpu")


def test_none_takes_a_core_from_training_on_the_cpu() -> None:
    assert default_workers(CPU) == 0
    assert default_workers(torch.device("cuda")) <= 1


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_come_in_order_whoever_prepares_them(make_recipe: Callable[..., Recipe], workers: int) -> None:
    task = task_class("translation")(make_recipe(), None)
    plan = task.train_plan(0)
    feed = Feed(task, workers, CPU)
    for start in (0, 5):
        feed.begin(plan[start:])
        for examples in plan[start : start + 4]:
            assert torch.equal(feed.take(examples).target, task.train_batch(examples).target)
    feed.end()
    assert torch.equal(feed.take(plan[0]).target, task.train_batch(plan[0]).target)


def test_a_run_with_workers_is_the_one_without_bit_for_bit_and_goes_on(
    tmp_path: Path, make_recipe: Callable[..., Recipe]
) -> None:
    def settings(workers: int, **other: int) -> Recipe:
        return make_recipe(training={"workers": workers, "epochs": 1, "log_every": 1, "batch_size": 40, **other})

    without, with_them = RunDirectory(tmp_path / "without"), RunDirectory(tmp_path / "with")
    train(settings(0), without)
    train(settings(2, max_steps=2), with_them)
    train(settings(1), with_them, resume=True)
    losses = [[line["train_loss"] for line in run.metrics() if "train_loss" in line] for run in (without, with_them)]
    assert losses[0] == losses[1] and len(losses[0]) == 5


def test_what_goes_wrong_in_a_worker_is_one_line(make_recipe: Callable[..., Recipe]) -> None:
    task = task_class("translation")(make_recipe(), None)
    plan = task.train_plan(0)
    prepare = task.train_batch

    def refusing(examples: Sequence[int]) -> Batch:
        if examples == plan[1]:
            raise RecipeError("the features of image 7 are damaged")
        if examples == plan[2]:
            os.kill(os.getpid(), signal.SIGKILL)
        return prepare(examples)

    task.train_batch = refusing  # type: ignore[method-assign]
    feed = Feed(task, 1, CPU)
    feed.begin(plan)
    assert torch.equal(feed.take(plan[0]).target, prepare(plan[0]).target)
    with pytest.raises(RecipeError, match=r"^the features of image 7 are damaged$"):
        feed.take(plan[1])
    with pytest.raises(RunError, match="a worker that prepares batches has ended: ") as caught:
        feed.take(plan[2])
    assert "\n" not in str(caught.value)
    feed.end()
