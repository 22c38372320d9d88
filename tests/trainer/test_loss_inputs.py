"""What a loss needs besides the model: nothing, what an opened run holds, or what is built from the data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from smoothloss_trainer import loss_inputs
from smoothloss_trainer.config import Recipe
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.run import RunDirectory
from smoothloss_trainer.tasks import task_class

Make = Callable[..., Recipe]
CPU = torch.device("cpu")


def test_a_loss_without_table_or_reward_needs_nothing(tmp_path: Path, make_recipe: Make) -> None:
    recipe, run = make_recipe(loss={"name": "mle"}), RunDirectory(tmp_path / "run")
    task = task_class(recipe.task)(recipe, None)
    assert loss_inputs.table(recipe, run, task, opened=False) is None
    assert loss_inputs.weights(recipe, run, task, CPU, opened=False) == (None, None)


def test_an_opened_run_has_its_own_table(tmp_path: Path, make_recipe: Make) -> None:
    recipe, run = make_recipe(loss={"name": "tok", "alpha": 0.3}), RunDirectory(tmp_path / "run")
    task = task_class(recipe.task)(recipe, None)
    built = loss_inputs.table(recipe, run, task, opened=False)
    assert built is not None
    run.path.mkdir()
    built.weights[0, 0] = 0.125  # tells it from one that is built again
    built.save(run.table_file)
    opened = loss_inputs.table(recipe, run, task, opened=True)
    assert opened is not None and torch.equal(opened.weights, built.weights)
    run.table_file.write_bytes(b"x" * 50)
    with pytest.raises(RecipeError, match="table"):
        loss_inputs.table(recipe, run, task, opened=True)
