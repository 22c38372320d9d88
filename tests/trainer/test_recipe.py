from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from smoothloss_trainer import demo, shipped
from smoothloss_trainer.comparison import recipe_values as as_values
from smoothloss_trainer.config import Recipe
from smoothloss_trainer.documents import dump_yaml, parse_yaml
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.recipe import load_recipe, parse_recipe, recipe_help, recipe_keys
from smoothloss_trainer.run import RunDirectory
from smoothloss_trainer.tasks import TASKS

Values = Callable[..., dict[str, Any]]
RECIPES = shipped.FOLDER
DEMO = Path(demo.__file__).parent


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


def test_a_long_chain_of_bases_is_refused(tmp_path: Path) -> None:
    for number in range(1100):
        write(tmp_path / f"{number}.yaml", {"base": f"{number + 1}.yaml"})
    with pytest.raises(RecipeError, match="chain of more than 64 bases"):
        load_recipe(tmp_path / "0.yaml")


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "x/" * 3000, "\udcff.yaml", ""])
def test_a_name_that_no_file_has_is_no_recipe(name: str) -> None:
    with pytest.raises(RecipeError, match="recipe"):
        load_recipe(name)


def test_a_first_rate_of_nothing_is_refused(recipe_values: Values) -> None:
    with pytest.raises(RecipeError, match=r"optimizer\.lr times optimizer\.decay"):
        parse_recipe(recipe_values(optimizer={"decay": 1e-300, "decay_start": 0}))


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [", "text"])
def test_what_is_no_recipe_is_said(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.yaml").write_text(content)
    with pytest.raises(RecipeError, match=r"r\.yaml"):
        load_recipe(tmp_path / "r.yaml")


def test_validation_searches_whatever_the_test_does(recipe_values: Values) -> None:
    decoding = parse_recipe(recipe_values(decoding={"method": "sample", "n_best": 9, "suppress_unk": True})).decoding
    found = decoding.for_validation()
    assert (found.method, found.beam_size, found.n_best, found.suppress_unk) == ("beam", 1, 1, True)


@pytest.mark.parametrize(
    "path",
    sorted({*RECIPES.rglob("*.yaml"), *DEMO.glob("*.yaml")} - {*RECIPES.glob("tables/*.yaml")}),
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_the_recipes_are_valid(path: Path) -> None:
    assert load_recipe(path, here=False).task in TASKS


def test_relative_paths_are_of_the_recipe_or_of_the_working_folder(
    tmp_path: Path, recipe_values: Values, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, here = tmp_path / "own", tmp_path / "here"
    for folder in (own, here):
        folder.mkdir()
        for part in ("train", "val"):
            for side in ("up", "low"):
                (folder / f"{part}.{side}").write_text("dog\n")
    (own / "val.up").unlink()
    (own / "val.low").unlink()
    (here / "only").mkdir()
    (here / "only" / "test.up.gz").touch()
    monkeypatch.chdir(here)
    data = {"train": "train", "validation": "val", "test": {"test": "only/test"}}
    path = write(own / "train.yaml", recipe_values(data=data))
    found = load_recipe(path).data
    assert found.train == str(own / "train"), "in both: the recipe's own folder"
    assert (found.validation, found.test) == (str(here / "val"), {"test": str(here / "only" / "test")})
    assert load_recipe(path, ["--data.train", "train"]).data.train == str(here / "train")
    child = write(here / "child.yaml", {"base": str(path), "data": {"validation": "val"}})
    assert load_recipe(child).data.train == str(own / "train"), "that of the file that says it"
    assert load_recipe(write(here / "again.yaml", {"base": "../own/train.yaml"})).data == found
    assert load_recipe(write(own / "far.yaml", {"base": "child.yaml"})).data == found, "a base of the working folder"
    with pytest.raises(RecipeError, match=f"data.train: no such file: {here}/gone$"):
        load_recipe(path, ["--data.train", "gone"])
    write(path, recipe_values(data={**data, "train": "gone"}))
    with pytest.raises(RecipeError, match=f"data.train: no such file: {own}/gone nor {here}/gone$"):
        load_recipe(path)
    assert load_recipe(path, here=False).data.train == "gone"


def test_a_run_keeps_paths_that_hold_from_anywhere(
    tmp_path: Path, recipe_values: Values, monkeypatch: pytest.MonkeyPatch
) -> None:
    for side in ("up", "low"):
        (tmp_path / f"train.{side}").write_text("dog\n")
    path = write(tmp_path / "r.yaml", recipe_values(data={"train": "train", "test": {"test": "${NOT_SET}/test"}}))
    recipe = load_recipe(path)
    run = RunDirectory(tmp_path / "a" / "run")
    run.path.mkdir(parents=True)
    run.write_recipe(recipe)
    monkeypatch.chdir("/")
    assert run.recipe() == recipe
    assert recipe.data.train == str(tmp_path / "train")
    assert recipe.data.test == {"test": "${NOT_SET}/test"}, "the data may lie elsewhere on another machine"


def test_a_run_is_opened_where_its_device_is_missing(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    values = as_values(make_recipe())
    path = write(tmp_path / "recipe.yaml", {**values, "device": "cuda:99"})
    assert load_recipe(path, here=False).device == "cuda:99"
    with pytest.raises(RecipeError, match=r"device is 'cuda:99'"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--training.epochs", "3"], ("training.epochs", 3)),
        (["--training.epochs=3"], ("training.epochs", 3)),
        (["--training.epochs=3", "--training.epochs=4"], ("training.epochs", 4)),
        (["--optimizer.lr", "1e-3"], ("optimizer.lr", 0.001)),
        (["--loss.reward.clip", "-1"], ("loss.reward.clip", -1.0)),
        (["--loss.reward.clip=null"], ("loss.reward.clip", None)),
        (["--optimizer.betas", "[0.5, 0.9]"], ("optimizer.betas", (0.5, 0.9))),
        (["--data.lowercase", "true"], ("data.lowercase", True)),
        (["--name", "2018"], ("name", "2018")),
        (["--name", "Tok: [x"], ("name", "Tok: [x")),
        (["--name", "null"], ("name", "null")),
        (["--training.metric", "~"], ("training.metric", None)),
        (["--loss", "{name: tok, alpha: 0.5}"], ("loss.embeddings.dim", 8)),
        (["--data.test.more", "/x"], ("data.test.more", "/x")),
        (["--data.test={more: /x}"], ("data.test", {"more": "/x"})),
        (["--data.held_out.dev", "5"], ("data.held_out.dev", 5.0)),
    ],
)
def test_overrides_are_of_the_key_s_type(recipe_values: Values, words: list[str], found: tuple[str, Any]) -> None:
    value: Any = parse_recipe(recipe_values(), words)
    for part in found[0].split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    assert (type(value), value) == (type(found[1]), found[1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--training.epoch", "3"], "there is no key --training.epoch, did you mean --training.epochs?"),
        (["--alpha", "0.5"], "did you mean --loss.alpha?"),
        (["--training.lr=1"], "did you mean --optimizer.lr?"),
        (["--zzz", "1"], "there is no key --zzz"),
        (["epochs", "3"], "expected --key value, got 'epochs'"),
        (["--training.epochs"], "--training.epochs needs a value"),
        (["--training.tensorboard", "--seed", "3"], "--training.tensorboard needs a value"),
        (["--training.epochs", "2.0"], "training.epochs must be a whole number from 1 to 1,000,000,000, got 2.0"),
        (["--training.epochs", "true"], "training.epochs must be a whole number"),
        (["--training.epochs", "[1"], "--training.epochs is not valid YAML"),
        (["--data.lowercase", "yes"], "data.lowercase must be true or false, got 'yes'"),
        (["--loss", "tok"], "loss must be a mapping of keys to values, got 'tok'"),
        (["--loss.name", ""], "loss.name must be one of mle, "),
        (["--data.test.a/b", "/x"], "data.test.a/b: must be a name for files"),
        (["--task", "demo"], "task is translation in the recipe"),
        (["--seed", "[" * 9999], "nested deeper"),
    ],
)
def test_what_is_wrong_with_an_override_is_said(recipe_values: Values, words: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(recipe_values(), words)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("loss: [mle]", "loss must be a mapping of keys to values, got ['mle']"),
        ("loss: 0", "loss must be a mapping of keys to values, got 0"),
        ("loss:", "loss must be a mapping of keys to values, got null"),
        ("training: {epochs: '3'}", "training.epochs must be a whole number from 1 to 1,000,000,000, got '3'"),
        ("training: {patience: -1}", "training.patience must be"),
        ("training: {max_steps: -1}", "training.max_steps must be a whole number from 1 to 1,000,000,000 or null"),
        ("training: {max_steps: 0}", "training.max_steps must be"),
        ("training: {clip: -1}", "training.clip must be a number from 0, got -1"),
        ("training: {clip: 1e-300}", "training.clip: must be 0, which does not clip, or"),
        ("training: {max_minutes: .nan}", "training.max_minutes must be"),
        ("model: {decoder: 0}", "model.decoder must be"),
        ("model: {dropout: 2}", "model.dropout must be a number from 0 and below 1, got 2"),
        ("optimizer: {betas: [2, .9]}", "optimizer.betas must be a list of 2"),
        ("optimizer: {weight_decay: -1}", "optimizer.weight_decay must be"),
        ("optimizer: {lr: 1, weight_decay: 2}", "optimizer.lr times optimizer.weight_decay must be below 1"),
        ("{training: {max_steps: 5}, optimizer: {warmup_steps: 5}}", "optimizer.warmup_steps must be below"),
        ("loss: {beta: -1}", "loss.beta must be"),
        ("loss: {embeddings: {dim: 0}}", "loss.embeddings.dim must be"),
        ("loss: {teacher: {runs: here}}", "loss.teacher.runs must be a list of paths, got 'here'"),
        ("loss: {name: tok}", "loss.alpha must be above 0 for loss.name tok, which is mle otherwise"),
        ("loss: {name: tok_seq_lazy}", "loss.alpha or loss.token_alpha must be above 0"),
        ("loss: {name: label_smoothing}", "loss.label_smoothing must be above 0"),
        ("loss: {prior: unigram}", "loss.prior is 'unigram', which spreads the mass on all classes, but there is none"),
        (
            "loss: {name: tok, alpha: 0.2, tail: exact, prior: unigram}",
            "but there is none: loss.label_smoothing or loss.consistency above 0",
        ),
        ("{model: {dropout: 0.0}, loss: {consistency: 1}}", "loss.consistency needs model.dropout above 0, got 0"),
        ("loss: {final_share: 0.5}", "loss.final_share is 0.5, but loss.name mle has no share to lower"),
        ("loss: {final_share: 2}", "loss.final_share must be a number from 0 to 1, got 2"),
        (
            "{training: {epochs: 1}, loss: {label_smoothing: 0.1, final_share: 0.0}}",
            "loss.final_share below 1 changes the loss after the first epoch: training.epochs must be above 1, got 1",
        ),
        ("loss: {embeddings: {refresh: true}}", "loss.embeddings.refresh needs a loss with a similarity table"),
        (
            "{device: auto, training: {graphs: true}, loss: {label_smoothing: 0.1, final_share: 0.0}}",
            "training.graphs records a loss that stays the same, and loss.final_share below 1 changes it",
        ),
        ("loss: {consistency_classes: 0}", "loss.consistency_classes must be a whole number from 1"),
        ("seed: 1180591620717411303424", "seed must be"),
        ("data: {held_out: {dev: .nan}}", "data.held_out.dev must be"),
        ("data: {held_out: {dev: 2.5}}", "data.held_out.dev: must be a number of pairs"),
        ("data: {train: ~nosuchuser/x}", "data.train: there is no such user"),
        ('data: {train: "a\\0b"}', "data.train: must be a path"),
        ("data: {test: {a/b: x}}", "data.test.a/b: must be a name for files"),
        ("data: {test: {'': x}}", "must be a name for files"),
        ("data: {test: {..: x}}", "must be a name for files"),
        ('data: {test: {"\\ud800": x}}', "must be a name for files"),
        ("data: {raw: {dev: /x}}", "data.raw: dev must be one of validation, test"),
        ("data: {format: tsv, columns: [fr]}", "data.source must be one of data.columns"),
        ("name: a/b", "name: must be a name for files"),
        ("name: 2018", "name must be text, got 2018"),
        ("device: meta", "device must be auto, cpu"),
        ("decoding: {batch_size: 1000000, max_length: 1000000}", "must multiply to 100,000,000 tokens at most"),
        ("a\\nb: 1", "there is no key"),
    ],
)
def test_values_that_would_train_nothing_or_fail_later_are_refused(
    tmp_path: Path, recipe_values: Values, line: str, message: str
) -> None:
    write(tmp_path / "base.yaml", recipe_values())
    path = tmp_path / "r.yaml"
    path.write_text(f"{line}\n" if line.startswith("{") else f"base: base.yaml\n{line}\n")
    if line.startswith("{"):
        path.write_text(f"{{base: base.yaml, {line[1:]}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_language_may_be_no(tmp_path: Path, recipe_values: Values) -> None:
    write(tmp_path / "base.yaml", recipe_values())
    (tmp_path / "r.yaml").write_text("base: base.yaml\ndata: {source: no, target: on}\n")
    data = load_recipe(tmp_path / "r.yaml").data
    assert (data.source, data.target) == ("no", "on")


def test_a_name_that_yaml_would_take_for_a_number_survives(tmp_path: Path, make_recipe: Callable[..., Recipe]) -> None:
    run = RunDirectory(tmp_path)
    for name in ("1e-3", "010", "null", "no", "1:30", "Tok-Seq (lazy): ü"):
        recipe = make_recipe(name=name)
        run.write_recipe(recipe)
        assert run.recipe().name == name


def test_a_recipe_is_read_as_no_more_than_it_may_be(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    for content, message in ((b"\xff", "not UTF-8"), (b"x" * 1_000_000, "longer"), (b"a: 1\na: 2", "line 2: .*twice")):
        path.write_bytes(content)
        with pytest.raises(RecipeError, match=message):
            load_recipe(path)
    path.write_bytes(b"\xef\xbb\xbftask: nothing")
    with pytest.raises(RecipeError, match="task must be one of"):
        load_recipe(path)
    for base in ("3", "null", "''", "[]", "~nosuchuser/x", '"\\0"', "${NOT_SET}/x"):
        path.write_text(f"base: {base}\n")
        with pytest.raises(RecipeError, match=r"base of|environment variable"):
            load_recipe(path)


def test_help_names_every_key_with_type_range_default_and_meaning() -> None:
    for task in TASKS:
        shown = recipe_help(task)
        for name, key in recipe_keys(task).items():
            assert (f"\n{name}: " if key.is_section else f"--{name}  (") in shown
            assert key.is_section or key.explanation, f"{name} has no meaning"
    shown = recipe_help("translation")
    assert "--loss.alpha  (a number from 0 to 1; default 0.0)" in shown
    assert "Smoothed share of the target" in shown


@settings(max_examples=50)
@given(st.data())
def test_any_value_of_any_key_is_a_recipe_or_one_line(recipe_values: Values, data: st.DataObject) -> None:
    keys = recipe_keys("translation")
    name = data.draw(st.sampled_from(list(keys)))
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
    lists, mappings = st.lists(scalars), st.dictionaries(st.text(), scalars)
    value = data.draw(scalars | lists | mappings | st.lists(lists | mappings) | st.dictionaries(st.text(), lists))
    values = nested = copy.deepcopy(recipe_values())
    *sections, last = name.split(".")
    for section in sections:
        nested = nested.setdefault(section, {})
    nested[last] = value
    try:
        recipe = parse_recipe(values)
    except RecipeError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert parse_recipe(parse_yaml(dump_yaml(as_values(recipe)), "x")) == recipe


WORDS = ["--seed", "--loss.alpha=", "--name", "--data.test.x", "3", "[", "{"]


@given(words=st.lists(st.text() | st.sampled_from(WORDS)))
def test_any_words_are_overrides_or_one_line(recipe_values: Values, words: list[str]) -> None:
    try:
        parse_recipe(recipe_values(), words)
    except RecipeError as error:
        assert len(str(error).splitlines()) == 1
