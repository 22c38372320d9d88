from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from smoothloss_trainer import shipped
from smoothloss_trainer.cli import main
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.recipe import load_recipe, recipe_keys
from smoothloss_trainer.tuning.space import TuneConfig, put, read_plan, value_of

pytest.importorskip("optuna")
Values = Callable[..., dict[str, Any]]
SEQ = {"name": "seq", "alpha": 0.3, "tau": 0.2}


def written(folder: Path, values: dict[str, Any], space: Any) -> Path:
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump({**values, "tune": {"space": space}}))
    return path


@pytest.mark.parametrize(
    ("space", "problem"),
    [
        ({"loss.alfa": [0, 1]}, "there is no key tune.space.loss.alfa, did you mean tune.space.loss.alpha"),
        ({"loss": [0, 1]}, "there is no key tune.space.loss"),
        ({"loss.alpha": [0.9, 0.1]}, "loss.alpha must go from a lower to a higher end"),
        ({"loss.alpha": [0.5, 0.5]}, "loss.alpha must go from a lower to a higher end"),
        ({"loss.alpha": [0.5, 1.5]}, "loss.alpha must be a number from 0 to 1, got 1.5"),
        ({"loss.alpha": [0.5]}, "loss.alpha must have two ends"),
        ({"loss.alpha": []}, "loss.alpha must have two ends"),
        ({"loss.alpha": ["a", "b"]}, "loss.alpha must be a number from 0 to 1, got 'a'"),
        ({"loss.alpha": {"log": [0.0, 0.5]}}, "loss.alpha must begin above 0"),
        ({"loss.alpha": {"log": 3}}, "loss.alpha must have two ends"),
        ({"loss.beta": "log"}, "log goes around the recipe's own value, which is 0.0"),
        ({"loss.alpha": 0.5}, r"loss.alpha must be \[low, high\]"),
        ({"loss.alpha": {"uniform": [0, 1]}}, r"loss.alpha must be \[low, high\]"),
        ({"loss.num_samples": [1, 2.5]}, "loss.num_samples must be a whole number from 1 to 10,000, got 2.5"),
        ({"training.patience": {"log": [0, 4]}}, "training.patience must begin above 0"),
        ({"training.max_steps": [None, 4]}, "training.max_steps must have two numbers"),
        ({"loss.pool": ["batch", "vocabulary"]}, "loss.pool is no number: write {choices"),
        ({"loss.pool": {"choices": ["batch", "bach"]}}, "loss.pool must be one of .*, got 'bach'"),
        ({"loss.pool": {"choices": ["batch", "batch"]}}, "choices must differ"),
        ({"loss.pool": {"choices": []}}, "choices must be a list that is not empty"),
        ({"optimizer.betas": {"choices": [[0.9, 0.99]]}}, "choices must be numbers, text"),
        ({"data.min_count": [1, 3]}, "trials that differ in data.min_count do not compare"),
        ({"seed": [1, 3]}, "trials that differ in seed do not compare"),
        ({}, "tune.space is empty"),
        ([1], "tune.space must be a mapping"),
    ],
)  # fmt: skip
def test_what_is_no_space_is_said_in_one_line(
    tmp_path: Path, recipe_values: Values, capsys: pytest.CaptureFixture[str], space: Any, problem: str
) -> None:
    path = written(tmp_path, recipe_values(loss=SEQ), space)
    with pytest.raises(RecipeError, match=problem):
        read_plan(path)
    assert main(["tune", str(path), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_recipe_without_a_space(tmp_path: Path, recipe_values: Values) -> None:
    path = tmp_path / "plain.yaml"
    path.write_text(yaml.safe_dump(recipe_values()))
    with pytest.raises(RecipeError, match="has no tune: section, such as"):
        read_plan(path)


@given(data=st.data())
def test_what_is_drawn_is_a_recipe(data: st.DataObject, recipe_values: Values, tmp_path_factory: Any) -> None:
    """Every end of every range of numbers, and a bare log, is a value that the key takes."""
    numbers = [
        key
        for name, key in recipe_keys("translation").items()
        if not key.is_section and key.schema.get("type") in ("number", "integer") and name.startswith(("loss", "opt"))
    ]
    key = data.draw(st.sampled_from(numbers))
    low = key.schema.get("minimum", key.schema.get("exclusiveMinimum", 0))
    values = recipe_values(loss=SEQ)
    own = data.draw(st.integers(1, 50) if key.schema["type"] == "integer" else st.floats(low + 1e-3, low + 0.9))
    path = written(tmp_path_factory.mktemp("space"), put(values, {key.name: own}), {key.name: "log"})
    try:
        plan = read_plan(path)
    except RecipeError as error:
        assert "must" in str(error)  # of the recipe, such as a reward's settings
        return
    drawn = plan.space[key.name]
    assert drawn.log and drawn.low <= value_of(plan.recipe, key.name) <= drawn.high
    for value in (drawn.low, drawn.high):
        assert value_of(plan.recipe_of({key.name: value}), key.name) == value


def test_test_files_need_not_be_there(tmp_path: Path, recipe_values: Values) -> None:
    values = recipe_values(loss=SEQ)
    values["data"] |= {"test": {"test": "not/there", "later": "nor/there"}, "raw": {"test": "nowhere"}}
    plan = read_plan(written(tmp_path, values, {"loss.alpha": [0.1, 0.9]}))
    assert not plan.recipe.data.test and not plan.recipe.data.raw and not plan.recipe.training.test


def test_train_takes_a_recipe_with_a_space(tmp_path: Path, recipe_values: Values) -> None:
    path = written(tmp_path, recipe_values(loss=SEQ), {"loss.alpha": [0.1, 0.9]})
    assert load_recipe(path).loss.alpha == 0.3


def test_the_spaces_of_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SMOOTHLOSS_DATA", str(tmp_path))
    spaces = [name for name in shipped.names() if "tune:" in (shipped.FOLDER / f"{name}.yaml").read_text()]
    assert {name.partition("/")[0] for name in spaces} == {"multi30k", "coco_labels"}
    for name in spaces:
        plan = read_plan(shipped.find(name))
        assert isinstance(plan.config, TuneConfig) and plan.space
