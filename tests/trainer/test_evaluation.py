from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from smoothloss.trainer import checkpoint
from smoothloss.trainer.config import DecodingConfig, Recipe, RecipeError
from smoothloss.trainer.evaluation import choose_device, evaluate_split, generate, negative_log_likelihood, open_run
from smoothloss.trainer.losses import encode
from smoothloss.trainer.run import RunDirectory
from smoothloss.trainer.tasks import Task, task_class
from smoothloss.trainer.vocabulary import PAD

CPU = torch.device("cpu")


@pytest.fixture
def task(make_recipe: Callable[..., Recipe]) -> Task:
    recipe = make_recipe(decoding={"batch_size": 7})
    return task_class(recipe.task)(recipe)


def test_the_validation_loss_is_per_token_over_all_batches(task: Task) -> None:
    model = task.build_model()
    logits, targets = [], []
    with torch.no_grad():
        for batch in task.validation_batches():
            hidden = model.eval().decode(encode(model, batch), batch.decoder_inputs)
            logits.append(model.classifier(hidden).flatten(0, 1))
            targets.append(batch.target.flatten())
    expected = torch.nn.functional.cross_entropy(torch.cat(logits), torch.cat(targets), ignore_index=PAD)
    assert negative_log_likelihood(model, task.validation_batches(), CPU) == pytest.approx(float(expected), rel=1e-6)


def test_every_input_gets_a_text_that_does_not_depend_on_the_batch_size(task: Task) -> None:
    model = task.build_model().double()
    small = generate(model, task, "test", DecodingConfig(batch_size=1, max_length=8), CPU, beam_size=2)
    large = generate(model, task, "test", DecodingConfig(batch_size=30, max_length=8), CPU, beam_size=2)
    assert small == large
    assert small.keys() == {str(number) for number in range(30)}


def test_a_model_that_gives_no_number_writes_nothing(task: Task) -> None:
    model = task.build_model()
    torch.nn.init.constant_(model.classifier.bias, float("nan"))
    texts = generate(model, task, "test", DecodingConfig(max_length=3), CPU, beam_size=2)
    assert set(texts.values()) == {""}


def test_a_run_is_opened_with_its_best_weights_and_scored(tmp_path: Path, task: Task) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create(task.recipe, task.vocabularies)  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match=r"no such checkpoint: .*best"):
        open_run(run)
    weights = task.build_model().state_dict()
    checkpoint.save_checkpoint(run.best, checkpoint.with_prefix("model", weights), {"step": 3})
    recipe, again, model, device = open_run(run)
    assert all(torch.equal(model.state_dict()[name], weights[name]) for name in weights)
    scores = evaluate_split(run, again, model, "test", recipe.decoding, device)
    assert json.loads((run.path / "scores.test.json").read_text())["bleu"] == scores["bleu"]


def test_devices_are_checked() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type in ("cpu", "cuda")
    for name in ("abacus", "cuda:99"):
        with pytest.raises(RecipeError, match=name):
            choose_device(name)
