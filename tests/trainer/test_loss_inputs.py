"""What a loss needs besides the model: nothing, what an opened run holds, or what is built from the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from smoothloss_trainer import loss_inputs
from smoothloss_trainer.config import Recipe
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.run import RunDirectory
from smoothloss_trainer.tasks import task_class
from smoothloss_trainer.vocabulary import EOS, UNK

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


def test_a_unigram_prior_is_how_often_the_target_text_has_each_token(make_recipe: Make) -> None:
    recipe = make_recipe(loss={"name": "label_smoothing", "label_smoothing": 0.1, "prior": "unigram"})
    task = task_class(recipe.task)(recipe, None)
    words = [*task.target_sentences()]
    seen = Counter(task.vocabulary.tokens.get(word, UNK) for sentence in words for word in sentence)
    seen[EOS] = len(words)
    found = loss_inputs.prior(recipe, task)
    assert found is not None
    expected = torch.tensor([seen[token] for token in range(len(task.vocabulary))], dtype=torch.float64)
    torch.testing.assert_close(found, expected / expected.sum())
    assert loss_inputs.prior(make_recipe(), task) is None


@pytest.mark.parametrize("name", ["bleu", "cider"])
def test_own_references_are_those_of_the_target(tmp_path: Path, make_recipe: Make, name: str) -> None:
    reward = {"name": name, "normalize": "batch"}
    settings = {"name": "seq_lazy", "alpha": 0.3, "tau": 0.5}
    run, found = RunDirectory(tmp_path / "run"), []
    for references in ("all", "own"):
        recipe = make_recipe(loss={**settings, "reward": {**reward, "references": references}})
        task = task_class(recipe.task)(recipe, None)
        weights, _ = loss_inputs.weights(recipe, run, task, CPU, opened=False)
        assert weights is not None
        batch = task.train_batch(task.train_plan(0)[0])
        found.append(weights.score(batch.target[None], batch.lengths[None], batch))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)  # a translation has one reference, its target
