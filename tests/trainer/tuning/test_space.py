from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smoothloss_trainer import shipped
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.recipe import load_recipe
from smoothloss_trainer.tuning.space import Choices, Range, load_space

Values = Callable[..., dict[str, Any]]


@pytest.fixture
def recipe(tmp_path: Path, recipe_values: Values) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_values(loss={"name": "tok", "alpha": 0.3})))
    return path


def load(recipe: Path, text: str) -> Any:
    path = recipe.with_name("space.yaml")
    path.write_text(text)
    return load_space(path, recipe, [])


def test_every_form(recipe: Path) -> None:
    text = "loss.alpha: [0.05, 0.9]\nloss.neighbours: [4, 32]\nloss.token_tau: {log: [0.05, 1]}\n"
    text += "optimizer.lr: log\nmodel.cell: {choices: [gru, lstm]}\n"
    space = load(recipe, text)
    assert space == {
        "loss.alpha": Range(0.05, 0.9),
        "loss.neighbours": Range(4, 32),
        "loss.token_tau": Range(0.05, 1, log=True),
        "optimizer.lr": Range(1e-9, 100, log=True),
        "model.cell": Choices(("gru", "lstm")),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loss.alpa: [0.1, 0.2]", "loss.alpa.*loss.alpha"),
        ("loss: [0.1, 0.2]", "space.yaml: .*loss"),
        ("loss.alpha: [0.9, 0.1]", "loss.alpha must be a range of two numbers, the lower one first"),
        ("loss.alpha: [0.5, 0.5]", "loss.alpha must be a range of two numbers, the lower one first"),
        ("loss.alpha: [0.1, 0.2, 0.3]", r"loss.alpha must be a range.*choices.*lists values"),
        ("loss.alpha: []", "loss.alpha must be a range"),
        ("loss.alpha: [low, high]", "loss.alpha must be a range"),
        ("loss.alpha: 0.3", r"loss.alpha must be \[low, high\], .* got 0.3"),
        ("loss.alpha: {log: [0, 1]}", "loss.alpha must begin above 0 for a logarithm, got 0"),
        ("loss.alpha: log", "loss.alpha: log needs its range"),
        ("loss.alpha: {log: [0.1, 0.9], choices: [1]}", "loss.alpha must be"),
        ("loss.alpha: [0.1, 1.5]", "loss.alpha must be .* got 1.5"),
        ("loss.neighbours: [0.5, 4]", "loss.neighbours"),
        ("model.cell: {choices: [gru]}", "model.cell must have two or more different choices"),
        ("model.cell: {choices: [gru, gru]}", "model.cell must have two or more different choices"),
        ("model.cell: {choices: [gru, rnn]}", "model.cell must be .* got 'rnn'"),
        ("data.min_count: [1, 3]", "data.min_count cannot be tuned"),
        ("training.tests: {choices: [true, false]}", "training.tests cannot be tuned"),
        ("{}", "names no key"),
        ("", "space"),
        ("- loss.alpha", "space"),
    ],
)
def test_a_wrong_space_is_one_line(recipe: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load(recipe, text)
    assert "space.yaml" in str(caught.value) and len(str(caught.value).splitlines()) == 1


@given(
    values=st.dictionaries(
        st.sampled_from(["loss.alpha", "loss.tail", "training.epochs", "loss.embeddings.path", "name", "x", "loss"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["log", "choices", "y"]), inner)
            ),
            max_leaves=5,
        ),
        max_size=2,
    )
)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_space_is_read_or_refused_in_one_line(recipe: Path, values: dict[str, Any]) -> None:
    try:
        assert load(recipe, yaml.safe_dump(values, allow_unicode=True))
    except RecipeError as error:
        assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize("path", sorted((shipped.FOLDER / "spaces").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_spaces_fit_the_recipes_of_their_loss(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOOTHLOSS_DATA", "/nowhere")
    folders = [shipped.FOLDER / name for name in ("multi30k", "coco_labels")]
    recipes = [recipe for folder in folders for recipe in sorted(folder.glob("*.yaml"))]
    for recipe in recipes:
        if load_recipe(recipe, here=False).loss.name == path.stem:
            assert load_space(path, recipe, ["--training.tests", "false"])
