"""Every key of every task's recipes, drawn from the schema, so that a new key is covered as it comes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from smoothloss_trainer.cli import main
from smoothloss_trainer.documents import dump_yaml
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.recipe import parse_recipe, recipe_keys
from smoothloss_trainer.schema import Key
from smoothloss_trainer.tasks import TASKS
from smoothloss_trainer.trainer import Trainer

Values = dict[str, Any]

HUGE = (2**31, 2**70, -(2**70), 10**30, 1e300, 1e-300, -1e300)
ODD = (float("nan"), float("inf"), -1, -0.5, 0, 0.5, 1, 2, 10**9)
WORDS = ("", " ", "..", "a/b", "x" * 256, "no", "1", "\0", "a\nb", "\ud800", "~nosuchuser/x", "/nope/nope", "é" * 200)
KINDS = (True, False, [], {}, ["mle"], {"a": 1}, [None], {"": ""}, {"a/b": "x"}, {"a": None}, [[]], [1, 2], [0.9, 2])
TRIED = (None, *ODD, *HUGE, *WORDS, *KINDS)


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Values]:
    """Return values of a recipe of each task that trains a step, with every part of the loss."""
    few = {"epochs": 1, "batch_size": 10, "max_steps": 1}
    reward = {"name": "bleu", "normalize": "batch"}
    loss = {"name": "tok_seq_lazy", "alpha": 0.5, "token_alpha": 0.5, "reward": reward}
    loss["embeddings"] = {"dim": 4, "epochs": 1}
    sizes = {"embedding": 4, "hidden": 4, "attention_hidden": 4, "dropout": 0.0}
    files = {**write_captions(tmp_path_factory.mktemp("captions")), "min_count": 1}
    pairs = {**write_pairs(tmp_path_factory.mktemp("pairs")), "min_count": 1}
    small = {"embedding": 4, "encoder": 4, "decoder": 4, "attention": 4, "dropout": 0.0}
    scenes = {"images": {"train": 4, "validation": 2, "test": 2}}
    shared = {"training": few, "decoding": {"max_length": 4, "beam_size": 2}, "device": "cpu", "loss": loss}
    return {
        "translation": {"task": "translation", "data": pairs, "model": small, **shared},
        "captioning": {"task": "captioning", "data": files, "model": sizes, **shared},
        "demo": {"task": "demo", "data": scenes, "model": sizes, **shared},
    }


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the cache of trained vectors, the same for all keys."""
    return tmp_path_factory.mktemp("vectors")


def write_pairs(folder: Path) -> dict[str, Any]:
    """Write a few pairs of sentences, separated by tabs."""
    words = ["red dog runs", "blue cat", "green bird sings here", "dog", "the cat sleeps", "a red bird"]
    lines = [f"{first} {second}\t{first} {second}".upper() for first in words for second in words[:4]]
    (folder / "pairs.tsv").write_text("\n".join(lines))
    sizes = {"validation": 3, "test": 3}
    return {"train": f"{folder}/pairs.tsv", "format": "tsv", "source": "en", "target": "de", "held_out": sizes}


def write_captions(folder: Path) -> dict[str, str]:
    """Write captions of a dozen labelled images."""
    numbers = [str(number) for number in range(12)]
    splits = {"restval": numbers[:8], "val": numbers[8:10], "test": numbers[10:]}
    labels = {"classes": ["dog", "cat"], "val2014": {number: [int(number) % 2] for number in numbers}}
    captions = {number: ["we see a dog", "here is a cat"] for number in numbers}
    (folder / "captions.json").write_text(json.dumps(captions))
    (folder / "labels.json").write_text(json.dumps({**labels, "karpathy_split_of_val2014": splits}))
    return {"captions": f"{folder}/captions.json", "labels": f"{folder}/labels.json"}


def changed(values: Values, name: str, value: Any) -> Values:
    """The values with one key changed."""
    head, _, rest = name.partition(".")
    return values | {head: changed(values.get(head, {}), rest, value) if rest else value}


def all_keys() -> list[Any]:
    """Every key of every task; those that all tasks share once."""
    found: dict[str, Any] = {}
    for task in TASKS:
        for name, key in recipe_keys(task).items():
            own = task if name.startswith(("data", "model")) else "any"
            found.setdefault(f"{own}-{name}", pytest.param(task if own == task else "translation", key))
    return [pytest.param(*param.values, id=name) for name, param in found.items()]


def bounds(schema: Any) -> list[float]:
    """All limits of numbers in a JSON schema."""
    if isinstance(schema, list):
        return [bound for each in schema for bound in bounds(each)]
    if not isinstance(schema, dict):
        return []
    names = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
    return [value for name, each in schema.items() for value in ([each] if name in names else bounds(each))]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def extremes(values: list[Any]) -> list[Any]:
    """The least and the largest of the numbers, and the last of the others."""
    numbers = sorted(value for value in values if is_number(value))
    others = [value for value in values if not is_number(value)]
    return [*numbers[:1], *numbers[1:][-1:], *others[-1:]]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return a list that gets, of every training step, whether it changed a weight."""
    moved: list[bool] = []
    original = Trainer._step

    def step(self: Trainer, *arguments: Any) -> None:
        before = [parameter.detach().clone() for parameter in self.computing.parameters]
        original(self, *arguments)
        moved.append(any(not torch.equal(*pair) for pair in zip(before, self.computing.parameters, strict=True)))

    monkeypatch.setattr(Trainer, "_step", step)
    return moved


class Command:
    """``smoothloss train`` of some values."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys, self.runs = folder, capsys, 0

    def __call__(self, values: Values, *words: str) -> str | None:
        """None when it trains, else the one line that it must end with."""
        path = self.folder / "recipe.yaml"
        path.write_text(dump_yaml(values), encoding="utf-8")
        self.capsys.readouterr()
        self.runs += 1
        code = main(["train", str(path), "--out", str(self.folder / f"run{self.runs}"), *words])
        printed = self.capsys.readouterr().err
        if code == 0:
            return None
        lines = printed.splitlines()
        errors = [line for line in lines if line.startswith("smoothloss: error: ")]
        assert code == 2 and len(errors) == 1 and lines[-1] == errors[0], printed
        return errors[0]


@pytest.fixture
def command(
    tmp_path: Path, vectors: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Return a function that trains values with the command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SMOOTHLOSS_CACHE", str(vectors))
    monkeypatch.setattr("smoothloss_trainer.run.environment", dict)  # it asks git, and the report draws: both take long
    monkeypatch.setattr("smoothloss_trainer.report.write", lambda *arguments, **options: None)
    return Command(tmp_path, capsys)


@pytest.mark.parametrize(("task", "key"), all_keys())
def test_a_key_trains_or_is_refused_in_one_line(
    task: str, key: Key, recipes: dict[str, Values], steps: list[bool], command: Command
) -> None:
    accepted: list[Any] = []
    refused: list[Any] = []
    limits = [other for limit in bounds(key.schema) for other in (limit, limit + 1, limit - 1, float(limit))]
    for value in (*TRIED, *limits):
        try:
            parse_recipe(changed(recipes[task], key.name, value))
            accepted.append(value)
        except RecipeError as error:
            assert len(str(error).splitlines()) == 1 and key.name.split(".")[0] in str(error)
            refused.append(value)
    for value in extremes(accepted):
        if key.name == "loss.embeddings.epochs" and value > 2:
            continue  # fine, and takes years
        line = command(changed(recipes[task], key.name, value))
        assert line is not None or any(steps), f"{value!r} was accepted, and nothing was trained"
        steps.clear()
    for value in extremes(refused):
        assert command(changed(recipes[task], key.name, value)) is not None
    assert refused and not steps


@pytest.mark.parametrize(("task", "key"), all_keys())
def test_a_key_may_be_null_only_where_that_means_something(task: str, key: Key, recipes: dict[str, Values]) -> None:
    values = changed(recipes[task], key.name, None)
    try:
        assert parse_recipe(values) and key.default is None
    except RecipeError as error:
        assert key.name in str(error)
        assert key.default is not None or "is needed" in str(error)  # by another key


def choices(schema: dict[str, Any]) -> list[Any]:
    """The words of a key that takes one of several, and both values of a switch."""
    found = [*schema.get("enum", []), *([True, False] if schema.get("type") == "boolean" else [])]
    return [*found, *(word for each in schema.get("anyOf", []) for word in choices(each))]


def choosing_keys() -> list[Any]:
    """The keys that have choices, and those of the loss once a task."""
    keys = [(task, key) for task in TASKS for key in recipe_keys(task).values() if choices(key.schema)]
    shared = ("optimizer", "training", "decoding", "device")
    return [
        pytest.param(task, key, id=f"{task}-{key.name}")
        for task, key in keys
        if task == "translation" or not key.name.startswith(shared)
    ]


@pytest.mark.parametrize(("task", "key"), choosing_keys())
def test_every_choice_trains_or_is_refused_in_one_line(
    task: str, key: Key, recipes: dict[str, Values], steps: list[bool], command: Command
) -> None:
    losses = ["tok_seq_lazy", "seq"] if key.name.startswith("loss.") and key.name != "loss.name" else ["tok_seq_lazy"]
    for value in choices(key.schema):
        for loss in losses:
            line = command(changed(changed(recipes[task], "loss.name", loss), key.name, value))
            assert line is not None or any(steps), f"{value!r} was accepted, and nothing was trained"
            steps.clear()


def test_a_warm_up_as_long_as_the_training_is_refused(recipes: dict[str, Values], command: Command) -> None:
    values = changed(recipes["translation"], "training.max_steps", None)
    for warmup in (2, 10**9):  # of the 2 steps of an epoch
        line = command(changed(values, "optimizer.warmup_steps", warmup))
        assert line is not None and "optimizer.warmup_steps must be below the 2 steps" in line
    assert command(changed(values, "optimizer.warmup_steps", 1)) is None
