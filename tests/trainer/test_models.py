from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from smoothloss_trainer import checkpoint
from smoothloss_trainer.config import DecodingConfig, Recipe
from smoothloss_trainer.decoding import Ensemble
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.evaluation import evaluate_split, generate, search_split
from smoothloss_trainer.loop import train
from smoothloss_trainer.models import average_run, open_checkpoints
from smoothloss_trainer.run import RunDirectory

Make = Callable[..., Recipe]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, make_recipe: Make) -> RunDirectory:
    """Return a run that has learnt something, and kept its last three validated models."""
    run = RunDirectory(tmp_path_factory.mktemp("models") / "run")
    recipe = make_recipe(training={"epochs": 10, "validate_every": 2, "keep_checkpoints": 3}, model={"dropout": 0.0})
    train(recipe, run)
    return run


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, make_recipe: Make) -> RunDirectory:
    """Return a run of another model on the same data, hardly trained."""
    run = RunDirectory(tmp_path_factory.mktemp("models") / "other")
    train(make_recipe(training={"epochs": 1}, model={"cell": "lstm", "decoder": 24}, seed=2), run)
    return run


def test_a_run_is_opened_with_its_best_model(trained: RunDirectory) -> None:
    recipe, task, model, device = open_checkpoints([trained.path])
    best, _ = checkpoint.load_checkpoint(trained.best)
    assert all(torch.equal(value, best[f"model.{name}"]) for name, value in model.state_dict().items())
    assert (recipe.task, device) == ("translation", CPU)
    assert task.vocabulary.words == trained.vocabularies()["target"].words


def test_a_run_without_a_best_checkpoint_is_refused(tmp_path: Path, trained: RunDirectory) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create(trained.recipe(), trained.vocabularies())
    with pytest.raises(RecipeError, match=r"no such checkpoint: .*best"):
        open_checkpoints([run.path])


@pytest.mark.parametrize("constraints", [{}, {"no_repeat_ngram_size": 2, "suppress_unk": True}])
def test_the_beam_scores_no_lower_than_greedy_search_on_a_test_set(
    trained: RunDirectory, constraints: dict[str, int]
) -> None:
    _, task, model, _ = open_checkpoints([trained.path])
    means = []
    for beam_size in (1, 2, 5):
        decoding = DecodingConfig(beam_size=beam_size, length_penalty=0.0, max_length=10, **constraints)  # type: ignore[arg-type]
        found = search_split(model, task, "test", decoding, CPU)
        means.append(sum(hypotheses[0].score for hypotheses in found.values()) / len(found))
    assert means[0] < means[1] <= means[2]


def test_two_of_the_same_write_what_one_writes(trained: RunDirectory) -> None:
    recipe, task, single, _ = open_checkpoints([trained.path])
    _, _, double, _ = open_checkpoints([trained.path, trained.best])
    assert isinstance(double, Ensemble)
    texts = [generate(model.double(), task, "test", recipe.decoding, CPU) for model in (single, double)]
    assert texts[0] == texts[1]


def test_models_of_different_kinds_are_mixed(tmp_path: Path, trained: RunDirectory, other: RunDirectory) -> None:
    recipe, task, model, device = open_checkpoints([trained.path, other.path])
    decoding = replace(recipe.decoding, length_penalty=0.0)
    scores = evaluate_split(tmp_path, task, model, "test", decoding, device)
    assert float(scores["bleu"]) > 0
    singles = [open_checkpoints([run.path])[2] for run in (trained, other)]
    ids, source = next(iter(task.sources("test", 3)))
    tokens = torch.full((len(ids),), 1)
    with torch.no_grad():
        logits = [each.eval().step(tokens, each.initial_state(each.encode(*source)))[0] for each in singles]
        mixed, _ = model.eval().step(tokens, model.initial_state(model.encode(*source)))
    torch.testing.assert_close(mixed.exp(), sum(each.softmax(-1) for each in logits) / 2)


def test_runs_that_cannot_be_mixed_are_named(tmp_path: Path, trained: RunDirectory) -> None:
    copy = RunDirectory(tmp_path / "copy")
    shutil.copytree(trained.path, copy.path)
    file = copy.path / "vocabulary.source.json"
    file.write_text(file.read_text().replace('"DOG"', '"HOG"'))
    with pytest.raises(RecipeError, match=r"run and .*copy cannot be mixed: their source vocabularies differ"):
        open_checkpoints([trained.path, copy.path])
    shutil.copy(trained.path / "vocabulary.source.json", file)
    text = copy.recipe_file.read_text()
    assert "/val\n" in text
    copy.recipe_file.write_text(text.replace("/val\n", "/test\n"))
    with pytest.raises(RecipeError, match="cannot be mixed: their models read different inputs"):
        open_checkpoints([trained.path, copy.path])


def test_the_last_models_are_averaged(trained: RunDirectory) -> None:
    names = [file.name for file in trained.step_files()]
    assert len(names) == 3
    for last, chosen in ((None, names), (2, names[1:])):
        path = average_run(trained, last)
        mean, about = checkpoint.load_checkpoint(path)
        assert about == {"average_of": chosen}
        models = [checkpoint.load_checkpoint(trained.last.with_name(name))[0] for name in chosen]
        for name, value in mean.items():
            assert torch.equal(value, (sum(model[name].double() for model in models) / len(chosen)).float())
    _, task, model, _ = open_checkpoints([path])
    assert float(task.score("test", generate(model, task, "test", DecodingConfig(max_length=10), CPU))["bleu"]) > 0


@pytest.mark.parametrize("last", [0, -1, 4])
def test_models_that_were_not_kept_are_not_averaged(trained: RunDirectory, last: int) -> None:
    with pytest.raises(RecipeError, match=rf"keeps 3 validated models, not the last {last}: .*keep_checkpoints"):
        average_run(trained, last)


def test_a_run_that_keeps_nothing_says_so(tmp_path: Path, other: RunDirectory) -> None:
    with pytest.raises(RecipeError, match="keeps 0 validated models, none to average"):
        average_run(other)
    with pytest.raises(RecipeError, match="is not a run"):
        average_run(RunDirectory(tmp_path))


def test_a_split_that_is_none_is_named_with_those_that_are(trained: RunDirectory) -> None:
    for split in ("tset", "train", ""):
        with pytest.raises(RecipeError, match=f"split must be one of validation, test, got {split!r}"):
            open_checkpoints([trained.path], splits=[split])


def test_runs_that_know_other_test_data_are_not_mixed(
    tmp_path: Path, trained: RunDirectory, make_recipe: Make, corpus: Path
) -> None:
    copy = RunDirectory(tmp_path / "copy")
    shutil.copytree(trained.path, copy.path)
    text = copy.recipe_file.read_text()
    copy.recipe_file.write_text(text.replace(f"{corpus}/test\n", f"{corpus}/val\n"))
    with pytest.raises(RecipeError, match="test is not the same data in both, so that one may have been trained on it"):
        open_checkpoints([trained.path, copy.path])
    open_checkpoints([trained.path, copy.path], splits=["validation"])
    with pytest.raises(RecipeError, match=r"copy: the data of test are not those of when the run began"):
        open_checkpoints([copy.path])


def test_an_average_is_the_run_s_and_not_the_users(tmp_path: Path, trained: RunDirectory) -> None:
    copy = RunDirectory(tmp_path / "copy")
    shutil.copytree(trained.path, copy.path)
    copy.folder.remove(["checkpoints/average.safetensors"])
    copy.average.write_text("mine")
    with pytest.raises(RecipeError, match=r"average\.safetensors is not of smoothloss"):
        average_run(copy)
    copy.average.unlink()
    for _ in range(2):
        average_run(copy)
    with copy.lock(), pytest.raises(RecipeError, match="is in use"):
        average_run(copy)
