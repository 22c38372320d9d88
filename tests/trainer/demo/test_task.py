from __future__ import annotations

import torch

from smoothloss_trainer.demo.run import RECIPES, RUNS
from smoothloss_trainer.demo.task import DemoTask
from smoothloss_trainer.recipe import load_recipe

SMALL = ["--data.images", '{"train": 12, "validation": 4, "test": 5}', "--training.batch_size", "10"]


def make_task() -> DemoTask:
    return DemoTask(load_recipe(RECIPES / "mle.yaml", SMALL))


def test_the_two_recipes_differ_in_the_loss_alone() -> None:
    one, other = (load_recipe(RECIPES / f"{name}.yaml") for name in RUNS)
    assert one.loss != other.loss and one.name != other.name
    for section in ("task", "data", "model", "seed", "optimizer", "training", "decoding", "device"):
        assert getattr(one, section) == getattr(other, section)


def test_splits_hold_different_scenes() -> None:
    task = make_task()
    names = [name for images in task.dataset.splits.values() for name in images]
    assert [len(images) for images in task.dataset.splits.values()] == [12, 4, 5]
    assert len(set(names)) == len(names) == len({task.pictures[name].tobytes() for name in names}) == 21


def test_everything_is_the_same_again() -> None:
    one, other = make_task(), make_task()
    assert one.vocabulary.words == other.vocabulary.words
    first, second = one.train_batch(one.train_plan(2)[0]), other.train_batch(other.train_plan(2)[0])
    torch.testing.assert_close(first.source, second.source, rtol=0, atol=0)
    torch.testing.assert_close(first.target, second.target, rtol=0, atol=0)
    assert one.train_plan(0) != one.train_plan(1)


def test_glove_reads_all_captions_of_an_image_together() -> None:
    task = make_task()
    texts = list(task.target_sentences())
    assert len(texts) == 12
    assert sum(map(len, texts)) == sum(task.vocabulary.counts)
