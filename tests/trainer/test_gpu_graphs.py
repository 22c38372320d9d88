"""Steps that are replayed as CUDA graphs give the losses of steps that are computed as they come."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from smoothloss_trainer.config import Recipe
from smoothloss_trainer.distributed import Processes
from smoothloss_trainer.loop import open_trainer
from smoothloss_trainer.run import RunDirectory
from trainer.test_graphs import LOSSES, Make, captioning, recorded, step_through

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available"),
]


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss != "references"])
def test_of_a_translator(tmp_path: Path, make_recipe: Make, loss: str, cell: str) -> None:
    training = {"pad_to_multiple_of": 4, "workers": 0}
    assert_equal(make_recipe(device="cuda", model={"cell": cell}, loss=LOSSES[loss], training=training), tmp_path)


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("loss", ["mle", "seq", "references", "bleu"])
def test_of_a_captioner(tmp_path: Path, loss: str, attention: bool) -> None:
    recipe = captioning(attention, loss=LOSSES[loss], training={"pad_to_multiple_of": 8, "workers": 0})
    assert_equal(replace(recipe, device="cuda"), tmp_path)


@pytest.mark.parametrize("precision", ["bfloat16", "float64"])
def test_in_every_precision(tmp_path: Path, make_recipe: Make, precision: str) -> None:
    training = {"pad_to_multiple_of": 4, "workers": 0, "precision": precision}
    assert_equal(make_recipe(device="cuda", training=training), tmp_path)


def assert_equal(recipe: Recipe, folder: Path) -> None:
    """Compare the losses of three epochs."""
    losses = [
        step_through(open_trainer(each, RunDirectory(folder / str(number)), Processes("cuda")), epochs=3)
        for number, each in enumerate((recipe, recorded(recipe)))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2 if recipe.training.precision == "bfloat16" else 1e-4)
