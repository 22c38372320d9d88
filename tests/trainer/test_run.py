from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from smoothloss_trainer.comparison import recipe_values as as_values
from smoothloss_trainer.config import Recipe
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.run import RunDirectory, environment
from smoothloss_trainer.vocabulary import Vocabulary

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


def test_a_begun_run_is_neither_free_nor_removed(run: RunDirectory, make_recipe: Make) -> None:
    with pytest.raises(RecipeError, match="already holds a run: continue it with --resume or start anew"):
        run.check(make_recipe())
    assert not run.check(make_recipe(), overwrite=True)
    assert not run.check(make_recipe(), resume=True), "it was killed before its first checkpoint"
    assert run.recipe_file.exists()
    run.last.touch()
    assert run.check(make_recipe(), resume=True)
    run.last.unlink()
    run.metrics_file.touch()
    with pytest.raises(RecipeError, match=r"no such checkpoint: .*last"):
        run.check(make_recipe(), resume=True)


@pytest.mark.parametrize("file", ["thesis.tex", "recipe.yaml", "checkpoints/mine", ".hidden", "evaluation.json"])
@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
def test_a_folder_that_is_no_run_is_refused(
    tmp_path: Path, make_recipe: Make, file: str, options: dict[str, bool]
) -> None:
    path = tmp_path / "home" / file
    path.parent.mkdir(parents=True)
    path.write_text("years of work")
    with pytest.raises(RecipeError, match=r"is not a run|not empty and not a run") as caught:
        RunDirectory(tmp_path / "home").check(make_recipe(), **options)
    assert "--overwrite" not in str(caught.value) and "\n" not in str(caught.value)
    assert path.read_text() == "years of work"


def test_overwriting_leaves_what_the_run_did_not_write(run: RunDirectory, make_recipe: Make) -> None:
    vocabularies, mine = run.vocabularies(), {}
    for name in ("notes.md", "plots/loss.png", "checkpoints/best_so_far.safetensors", "tensorboard/events.out.mine"):
        mine[run.path / name] = name
    mine[run.path / "checkpoints" / "step_0000000003.safetensors"] = "a copy"
    mine[run.path / "vocabulary.old.json"] = "no vocabulary"
    for path, text in mine.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert run.step_files() == []
    assert run.vocabularies().keys() == vocabularies.keys()
    run.folder.claim(["scores.old.json", "checkpoints/step_0000000005.safetensors"])
    for name in ("scores.old.json", "checkpoints/step_0000000005.safetensors", ".smoothloss-0123456789abcdef.tmp"):
        (run.path / name).write_text("ours")
    (run.path / "tensorboard" / f"events.out.{run.folder.facts()['id']}").touch()
    before = set(run.path.rglob("*")) - set(mine)
    run.create(make_recipe(), vocabularies)
    assert {path: path.read_text() for path in mine} == mine
    gone = before - set(run.path.rglob("*"))
    assert sorted(path.name[:11] for path in gone) == [".smoothloss", "events.out.", "scores.old.", "step_000000"]
    assert "scores.old.json" not in run.folder.names()


@pytest.mark.parametrize("name", ["report.html", "scores.test.json", "vocabulary.source.json", "metrics.jsonl"])
def test_a_users_file_of_a_name_that_is_needed_is_refused_before_anything_is_removed(
    tmp_path: Path, run: RunDirectory, make_recipe: Make, name: str
) -> None:
    run.folder.renew([])  # as if no version had ever written these
    assert [file.name for file in run.path.iterdir()] == ["run.json"]
    (run.path / name).write_text("mine")
    with pytest.raises(RecipeError, match=rf"{name} is not of smoothloss and in the way"):
        run.create(make_recipe(), {"source": Vocabulary.build([["a"]])}, ["report.html", "scores.test.json"])
    assert (run.path / name).read_text() == "mine"


def test_a_run_of_an_earlier_version_can_be_read_and_not_resumed(run: RunDirectory, make_recipe: Make) -> None:
    (run.path / "run.json").unlink()
    assert run.vocabularies() and run.recipe() and run.finished and run.is_of_earlier_version()
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(RecipeError, match=r"an earlier version wrote it .* choose another --out"):
            run.check(make_recipe(), **options)


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


LINE = '{{"step": {0}, "epoch": 1}}\n'


@pytest.mark.parametrize("rest", [b"", b'{"st', b'{"step": 4, "epoch": 1}', b"\xff\xfe", b"\0\0"])
def test_metrics_are_cut_back_and_a_half_written_line_is_left_out(run: RunDirectory, rest: bytes) -> None:
    assert run.metrics() == []
    run.metrics_file.write_bytes("".join(map(LINE.format, (1, 2, 3))).encode() + rest)
    assert [line["step"] for line in run.metrics()] == [1, 2, 3]
    with pytest.raises(RecipeError, match=r"metrics\.jsonl has 3 whole lines, and 4 were written before"):
        run.cut_metrics(4)
    run.cut_metrics(2)
    assert run.metrics_file.read_text() == LINE.format(1) + LINE.format(2)


@pytest.mark.parametrize("damage", [b"\xff", b"{", b"", b"3", b"[]", b'{"step": 1}', b"[" * 100_000, b"\0"])
def test_a_damaged_line_of_the_metrics_is_named(run: RunDirectory, damage: bytes) -> None:
    run.metrics_file.write_bytes(LINE.format(1).encode() + damage + b"\n" + LINE.format(3).encode())
    for ask in (run.metrics, lambda: run.cut_metrics(2)):
        with pytest.raises(RecipeError, match=r"metrics\.jsonl: line 2 is damaged"):
            ask()
    run.cut_metrics(1)
    assert [line["step"] for line in run.metrics()] == [1]


def test_broken_runs_are_named(tmp_path: Path, run: RunDirectory) -> None:
    with pytest.raises(RecipeError, match=r"has no recipe\.yaml"):
        RunDirectory(tmp_path).recipe()
    with pytest.raises(RecipeError, match="has no vocabularies"):
        RunDirectory(tmp_path).vocabularies()
    (run.path / "vocabulary.target.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"vocabulary\.target\.json"):
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
    with pytest.raises(RecipeError, match=r"vocabulary\.target\.json"):
        run.vocabularies()
