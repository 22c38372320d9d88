from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from smoothloss.trainer.config import Recipe
from smoothloss.trainer.errors import RecipeError
from smoothloss.trainer.run import RunDirectory, environment
from smoothloss.trainer.run import recipe_values as as_values
from smoothloss.trainer.vocabulary import Vocabulary

Make = Callable[..., Recipe]


@pytest.fixture
def run(tmp_path: Path, make_recipe: Make) -> RunDirectory:
    """Return a run directory that has been begun."""
    run = RunDirectory(tmp_path / "deep" / "run")
    run.create(make_recipe(), {"target": Vocabulary.build([["a"]]), "source": Vocabulary.build([["b"]])})
    return run


def test_a_run_tells_what_it_is(run: RunDirectory, make_recipe: Make) -> None:
    assert as_values(run.recipe()) == as_values(make_recipe())
    assert {name: vocabulary.words[4:] for name, vocabulary in run.vocabularies().items()} == {
        "source": ["b"],
        "target": ["a"],
    }
    assert json.loads((run.path / "environment.json").read_text())["versions"]["torch"]


def test_the_environment_names_versions_and_threads() -> None:
    found = environment()
    assert {"python", "torch", "sacrebleu", "smoothloss"} <= found["versions"].keys()
    assert found["threads"] >= 1


def test_only_the_runs_own_directory_is_removed(tmp_path: Path, run: RunDirectory) -> None:
    with pytest.raises(RecipeError, match="already holds a run"):
        run.check_free(overwrite=False)
    run.check_free(overwrite=True)
    assert not run.path.exists()
    run.check_free(overwrite=False)
    (tmp_path / "home").mkdir()
    RunDirectory(tmp_path / "home").check_free(overwrite=False)
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(RecipeError, match="is not a run"):
        RunDirectory(tmp_path / "home").check_free(overwrite=True)
    assert (tmp_path / "home" / "thesis.tex").exists()


def test_what_says_how_long_may_differ_and_what_says_what_may_not(run: RunDirectory, make_recipe: Make) -> None:
    run.check_same(make_recipe(training={"epochs": 99}, decoding={"beam_size": 7}, name="other"))
    for sections in (
        {"seed": 9},
        {"training": {"batch_size": 8}},
        {"optimizer": {"lr": 0.5}},
        {"model": {"cell": "lstm"}},
    ):
        with pytest.raises(RecipeError, match="cannot resume"):
            run.check_same(make_recipe(**sections))


def test_metrics_are_cut_back_and_a_broken_line_is_left_out(run: RunDirectory) -> None:
    assert run.metrics() == []
    run.metrics_file.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    assert [line["step"] for line in run.metrics()] == [1, 2, 3]
    run.cut_metrics(2)
    assert run.metrics_file.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_broken_runs_are_named(tmp_path: Path, run: RunDirectory) -> None:
    with pytest.raises(RecipeError, match=r"has no recipe\.yaml"):
        RunDirectory(tmp_path).recipe()
    with pytest.raises(RecipeError, match="has no vocabularies"):
        RunDirectory(tmp_path).vocabularies()
    (run.path / "vocabulary.target.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"vocabulary\.target\.json is not a vocabulary"):
        run.vocabularies()


@pytest.mark.parametrize(
    "content", [b"a: [", b"- 1\n", b"", b"\xff\xfe", b"task: dance\n", b"task: translation\nseeed: 1\n"]
)
def test_an_edited_recipe_that_is_none_is_one_line(run: RunDirectory, make_recipe: Make, content: bytes) -> None:
    run.recipe_file.write_bytes(content)
    for ask in (run.recipe, lambda: run.check_same(make_recipe())):
        with pytest.raises(RecipeError, match=r"recipe\.yaml") as caught:
            ask()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe"])
def test_a_vocabulary_that_is_none_is_named(run: RunDirectory, content: bytes) -> None:
    (run.path / "vocabulary.target.json").write_bytes(content)
    with pytest.raises(RecipeError, match=r"vocabulary\.target\.json is not a vocabulary"):
        run.vocabularies()
