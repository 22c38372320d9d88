from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from smoothloss.trainer.config import Recipe
from smoothloss.trainer.errors import RecipeError
from smoothloss.trainer.recipes import load_recipe, parse_recipe
from smoothloss.trainer.run import recipe_values as as_values

Values = Callable[..., dict[str, Any]]
RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def write(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_recipe_inherits_and_the_command_line_comes_last(tmp_path: Path, recipe_values: Values) -> None:
    write(tmp_path / "base.yaml", recipe_values(loss={"name": "tok", "alpha": 0.5}))
    (tmp_path / "sub").mkdir()
    path = write(tmp_path / "sub" / "child.yaml", {"base": "../base.yaml", "loss": {"alpha": 0.7}, "seed": 3})
    recipe = load_recipe(path, ["--training.epochs", "7", "--optimizer.betas=[0.8, 0.99]"])
    assert (recipe.loss.name, recipe.loss.alpha, recipe.seed) == ("tok", 0.7, 3)
    assert (recipe.training.epochs, recipe.training.batch_size) == (7, 16)
    assert tuple(recipe.optimizer.betas) == (0.8, 0.99)


def test_a_recipe_survives_its_snapshot(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(training={"max_minutes": 2.5})
    again = parse_recipe(as_values(recipe))
    assert as_values(again) == as_values(recipe)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"training": {"epoch": 3}}, "training.*epoch|epoch"),
        ({"trainning": {"epochs": 3}}, "trainning"),
        ({"training": {"epochs": "many"}}, "training.epochs"),
        ({"training": {"epochs": 0}}, "training.epochs must be a whole number from 1 to 1,000,000,000, got 0"),
        ({"loss": {"name": "tokk"}}, "loss.name"),
        ({"loss": {"alpha": 1.5}}, "loss.alpha must be a number from 0 to 1, got 1.5"),
        ({"loss": {"name": "seq_lazy", "sampler": "edit"}}, "loss.sampler edit draws samples of other lengths"),
        ({"loss": {"name": "seq", "sampler": "edit", "pool": "similar"}}, "loss.sampler edit inserts tokens too"),
        (
            {"loss": {"name": "seq", "max_insertions": 0}},
            "loss.max_insertions must be a whole number from 1 to 1,000, got 0",
        ),
        ({"loss": {"name": "mle", "reward": {"name": "bleu"}}}, "reward.name bleu needs a loss that draws samples"),
        ({"loss": {"name": "tok", "reward": {"name": "constant"}}}, "reward.name constant needs a loss that draws"),
        ({"loss": {"name": "seq", "reward": {"name": "bleu"}}}, "normalize samples gives a single sample the weight 1"),
        ({"loss": {"name": "seq", "reward": {"name": "meteor"}}}, "loss.reward.name"),
        ({"loss": {"reward": {"tau": 0}}}, "loss.reward.tau must be a number from 0.001 to 1,000, got 0"),
        ({"loss": {"reward": {"bleu_order": 9}}}, "loss.reward.bleu_order must be a whole number from 1 to 8, got 9"),
        ({"model": {"cell": "rnn"}}, "model.cell"),
        ({"data": {"train": None}}, "data.train"),
        ({"task": "summarisation"}, "task must be one of translation"),
        (
            {"training": {"keep_checkpoints": -1}},
            "training.keep_checkpoints must be a whole number from 0 to .*, got -1",
        ),
        ({"decoding": {"method": "dance"}}, "decoding.method"),
        ({"decoding": {"beam_size": 0}}, "decoding.beam_size must be a whole number from 1 to .*, got 0"),
        ({"decoding": {"temperature": 0.0}}, "decoding.temperature must be a number from 0.001 to 1,000, got 0.0"),
        ({"decoding": {"length_penalty": -1.0}}, "decoding.length_penalty must be a number from 0 to 10, got -1.0"),
        (
            {"decoding": {"no_repeat_ngram_size": -2}},
            "decoding.no_repeat_ngram_size must be a whole number from 0 to .*, got -2",
        ),
        ({"decoding": {"top_p": 1.5}}, "decoding.top_p must be a number above 0 and up to 1, got 1.5"),
        ({"decoding": {"beam_size": 3, "n_best": 4}}, r"decoding.n_best must be .*beam_size \(3\), got 4"),
    ],
)
def test_a_wrong_key_or_value_is_one_line_that_names_it(
    recipe_values: Values, sections: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        parse_recipe(recipe_values(**sections))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["--training.epoch=3", "--nothing", "--training.epochs=x"])
def test_a_wrong_override_is_named(tmp_path: Path, recipe_values: Values, override: str) -> None:
    path = write(tmp_path / "r.yaml", recipe_values())
    with pytest.raises(RecipeError, match=override.strip("-").split("=")[0]):
        load_recipe(path, [override])


def test_missing_and_circular_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no such recipe: .*nope\.yaml"):
        load_recipe(tmp_path / "nope.yaml")
    path = write(tmp_path / "child.yaml", {"base": "gone.yaml"})
    with pytest.raises(RecipeError, match=r"no such recipe: .*gone\.yaml \(base of .*child\.yaml\)"):
        load_recipe(path)
    write(tmp_path / "a.yaml", {"base": "b.yaml"})
    write(tmp_path / "b.yaml", {"base": "a.yaml"})
    with pytest.raises(RecipeError, match="its own base"):
        load_recipe(tmp_path / "a.yaml")


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [", "text"])
def test_what_is_no_recipe_is_said(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.yaml").write_text(content)
    with pytest.raises(RecipeError, match=r"r\.yaml"):
        load_recipe(tmp_path / "r.yaml")


def test_validation_searches_whatever_the_test_does(recipe_values: Values) -> None:
    decoding = parse_recipe(recipe_values(decoding={"method": "sample", "n_best": 9, "suppress_unk": True})).decoding
    found = decoding.for_validation()
    assert (found.method, found.beam_size, found.n_best, found.suppress_unk) == ("beam", 1, 1, True)


@pytest.mark.parametrize("path", sorted((RECIPES / "translation").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_translation_recipes_are_valid(path: Path) -> None:
    assert load_recipe(path).task == "translation"
