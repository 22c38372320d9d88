from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from smoothloss.trainer.config import Recipe, RecipeError
from smoothloss.trainer.recipes import load_recipe
from smoothloss.trainer.tasks import task_class
from smoothloss.trainer.tasks.translation import TranslationTask

Make = Callable[..., Recipe]
RECIPES = Path(__file__).resolve().parents[4] / "recipes" / "translation"


def test_batches_hold_the_corpus(make_recipe: Make) -> None:
    task = TranslationTask(make_recipe())
    assert task.test_splits == ["test"]
    batch = task.train_batch([0, 5])
    source, target = task.vocabularies["source"], task.vocabulary
    for row, number in enumerate([0, 5]):
        assert source.decode(batch.source[0][row].tolist()) == task.train.source[number]
        assert target.decode(batch.target[row].tolist()) == task.train.target[number]
        assert batch.lengths[row] == len(task.train.target[number])
    assert batch.inputs is not None
    references = task.training_references()
    assert len(references) == len(task.train)
    said = [[target.decode(tokens) for tokens in own] for own in references.select(batch.inputs).tolist()]
    assert said == [[task.train.target[0]], [task.train.target[5]]]


def test_generation_ids_and_scores_go_by_line(make_recipe: Make) -> None:
    task = TranslationTask(make_recipe())
    ids = [name for names, _ in task.sources("test", 7) for name in names]
    assert sorted(map(int, ids)) == list(range(30))
    right = {str(number): " ".join(words) for number, words in enumerate(task.splits["test"].target)}
    assert task.score("test", right)["bleu"] == pytest.approx(100.0)
    shifted = {str(number): right[str((number + 1) % 30)] for number in range(30)}
    assert float(task.score("test", shifted)["bleu"]) < 30


def test_validation_covers_every_word(make_recipe: Make) -> None:
    task = TranslationTask(make_recipe(decoding={"batch_size": 6}))
    words = sum(int(batch.lengths.sum()) for batch in task.validation_batches())
    assert words == sum(map(len, task.splits["validation"].target))


def test_given_vocabularies_are_kept(make_recipe: Make) -> None:
    first = TranslationTask(make_recipe())
    again = TranslationTask(make_recipe(data={"min_count": 1000}), first.vocabularies)
    assert again.vocabularies is first.vocabularies


def test_long_pairs_are_left_out_of_training(make_recipe: Make) -> None:
    task = TranslationTask(make_recipe(data={"max_length": 3}))
    assert 0 < len(task.train) < 200
    assert max(map(len, task.train.target)) == 3
    with pytest.raises(RecipeError, match="no pair of sentences"):
        TranslationTask(make_recipe(data={"max_length": 0}))


def test_an_unknown_split_is_named(make_recipe: Make) -> None:
    with pytest.raises(RecipeError, match="split must be one of validation, test, got 'tset'"):
        next(iter(TranslationTask(make_recipe()).sources("tset", 3)))


def test_multi30k(data_dir: Path) -> None:
    recipe = load_recipe(RECIPES / "tok_seq_lazy.yaml")
    task = task_class(recipe.task)(recipe)
    assert isinstance(task, TranslationTask)
    assert (len(task.train), len(task.splits["validation"]), len(task.splits["test"])) == (29000, 1014, 1000)
    assert (len(task.vocabularies["source"]), len(task.vocabulary)) == (7859, 5921)
