"""How recipes are read and checked.

A recipe is a YAML file with the fields of :class:`~smoothloss_trainer.config.Recipe`. ``base: other.yaml`` takes
everything from another recipe and changes only what is written below it; the command line (``--training.epochs 3``)
comes last. Relative paths are looked for in the folder of the file that names them, then in the working folder; those
of the command line in the working folder alone.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from smoothloss_trainer import shipped
from smoothloss_trainer.config import DecodingConfig, LossConfig, Recipe
from smoothloss_trainer.documents import MAX_YAML_CHARACTERS, parse_yaml
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.files import expand_path
from smoothloss_trainer.schema import (
    Hints,
    Key,
    Text,
    build,
    check_path,
    explain,
    find_path,
    keys_of,
    shown,
    unknown_key,
)
from smoothloss_trainer.tasks import TASKS, task_class

_LONGEST_CHAIN = 64  # recipes that are each other's base
_LEAST_RATE = 1e-9  # as of optimizer.lr
_MOST_SEARCHED = 100_000_000  # tokens of the hypotheses of one batch: about a gigabyte


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a recipe file with its chain of ``base:`` files merged in; its text knows the file's folder.

    Raises:
        RecipeError: when a file is missing, is no YAML mapping, or is its own base.
    """
    try:
        check_path(str(path))
        path.stat()
    except ValueError as error:
        raise RecipeError(f"recipe: {error}") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise RecipeError(f"recipe {shown(str(path))}: {error.strerror}") from None
    return _read_chain(path, ())


def _read_chain(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    path = shipped.find(path).resolve()
    if len(seen) > _LONGEST_CHAIN:
        raise RecipeError(f"recipe {seen[0]} has a chain of more than {_LONGEST_CHAIN} bases")
    if path in seen:
        raise RecipeError(f"recipe {path} is its own base")
    if not path.is_file():
        known = "" if seen else ", nor one of `smoothloss recipes`"
        raise RecipeError(f"no such recipe: {path}{known}" + (f" (base of {seen[-1]})" if seen else ""))
    with path.open("rb") as file:
        content = file.read(4 * MAX_YAML_CHARACTERS + 1)  # bytes of so many characters at most, and one too many
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe {path} is not UTF-8: {error}") from None
    values = parse_yaml(text, f"recipe {path}", Text.of(path.parent))
    if not isinstance(values, dict):
        raise RecipeError(f"recipe {path} must be a mapping of keys to values, got {type(values).__name__}")
    if "base" not in values:
        return values
    return _merge(_read_chain(_base(values.pop("base"), path), (*seen, path)), values)


def _base(name: Any, path: Path) -> Path:
    """The file that a recipe names as its base."""
    try:
        if not isinstance(name, str):
            raise ValueError("must be a path")
        check_path(name)
        found = expand_path(name)
        return found if found.is_absolute() else Path(find_path(Text.of(path.parent)(str(found))))
    except ValueError as error:
        if isinstance(name, str) and shipped.find(name).is_file():
            return shipped.find(name)
        missing = str(error).removeprefix("no such file: ")
        raise RecipeError(
            f"base of {path}: {error}" if missing == str(error) else f"no such recipe: {missing} (base of {path})"
        ) from None


def _hints(task: str) -> Hints:
    kind = task_class(task)
    return {"data": kind.data_config, "model": kind.model_config}


@cache
def recipe_keys(task: str) -> dict[str, Key]:
    """All keys of a task's recipes by name, in order: ``loss``, ``loss.name``, ``loss.alpha``, ..."""
    return {key.name: key for key in keys_of(Recipe, _hints(task))}


def recipe_help(task: str) -> str:
    """All keys of a task's recipes with types, ranges, defaults and meanings.

    Raises:
        RecipeError: when there is no such task.
    """
    usage = "usage: smoothloss train RECIPE [--out DIR] [--resume] [--overwrite] [--section.key VALUE ...]"
    more = "`smoothloss train --help` explains the options before it"
    keys = f"Keys of recipes for the task {task}. VALUE is written as in YAML; {more}."
    return f"{usage}\n\n{keys}\n\n{explain(iter(recipe_keys(task).values()))}\n"


def _override(values: dict[str, Any], words: Sequence[str], keys: dict[str, Key]) -> dict[str, Any]:
    """The values with what the command line says in their place."""
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("--"):
            raise RecipeError(f"expected --key value, got {word!r}")
        name, equals, given = word[2:].partition("=")
        if not equals:
            if not waiting or waiting[0].startswith("--"):
                raise RecipeError(f"--{name} needs a value")
            given = waiting.pop(0)
        key, entry = _key_of(name, keys)
        path = [*key.name.split("."), *entry]
        value = _value_of(given, key.schema["additionalProperties"] if entry else key.schema, f"--{name}")
        # Of a section only what is given changes; a mapping of names is replaced.
        values = _merge(values, _put({}, path, value)) if key.is_section else _put(values, path, value)
    return values


def _put(values: dict[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """The values with one of them, some sections down, changed."""
    head, *rest = path
    inner = values.get(head)
    return values | {head: _put(inner if isinstance(inner, dict) else {}, rest, value) if rest else value}


def _key_of(name: str, keys: dict[str, Key]) -> tuple[Key, list[str]]:
    """The key of this name and [], or the key of a mapping and the entry of it that the name goes on with."""
    if name in keys:
        return keys[name], []
    for key in keys.values():
        if name.startswith(f"{key.name}.") and not key.is_section and "additionalProperties" in key.schema:
            return key, [name[len(key.name) + 1 :]]
    raise unknown_key(f"--{name}", [f"--{key}" for key in keys])


def _value_of(word: str, schema: dict[str, Any], what: str) -> Any:
    """What a word of the command line means for a key: text as it stands where the key takes text, else YAML."""
    kinds = {each.get("type") for each in schema.get("anyOf", [schema])}
    string = Text.of(Path.cwd())
    is_null = "null" in kinds and word in ("null", "~")
    is_list = "array" in kinds and word.lstrip().startswith("[")
    return string(word) if "string" in kinds and not is_null and not is_list else parse_yaml(word, what, string)


def command_line_values(task: str, words: Sequence[str]) -> dict[str, Any]:
    """What words of the command line change in a recipe of this task, as its file would say it."""
    return _override({}, words, recipe_keys(task))


def parse_recipe(values: dict[str, Any], overrides: Sequence[str] = (), *, here: bool = True) -> Recipe:
    """A :class:`Recipe` from a mapping and command-line overrides (``["--training.epochs", "3"]``).

    Args:
        values: What :func:`read_yaml` gives, or plain values, whose paths are then taken as they stand.
        overrides: Words of the command line.
        here: Whether it is to be trained here, so that files and the device must be there.

    Raises:
        RecipeError: one line that names the wrong key or value.
    """
    if "task" not in values:
        raise RecipeError(f"task is needed, one of {', '.join(TASKS)}")
    task = values["task"]
    task_class(task)  # is there one?
    values = {key: value for key, value in values.items() if key != "tune"}  # what `smoothloss tune` reads
    values = _override(values, overrides, recipe_keys(task))
    if values["task"] != task:
        raise RecipeError(f"task is {task} in the recipe, and its keys are those of that task")
    recipe = build(Recipe, values, hints=_hints(task), here=here)
    check_recipe(recipe)
    return recipe


def load_recipe(path: str | Path, overrides: Sequence[str] = (), *, here: bool = True) -> Recipe:
    """Read a recipe file, its bases and the command line's overrides; see :func:`parse_recipe`.

    Raises:
        RecipeError: one line that names the file, key or value that is wrong.
    """
    try:
        return parse_recipe(read_yaml(Path(path)), overrides, here=here)
    except RecipeError as error:
        message = str(error)
        raise RecipeError(message if str(path) in message else f"recipe {path}: {message}") from None


def check_decoding(decoding: DecodingConfig) -> None:
    """Refuse values that no search can follow.

    Raises:
        RecipeError: naming the key, what was got and what was expected.
    """
    build(DecodingConfig, asdict(decoding), key="decoding")
    if decoding.method == "beam" and decoding.n_best > decoding.beam_size:
        expected = f"at most decoding.beam_size ({decoding.beam_size})"
        raise RecipeError(f"decoding.n_best must be {expected}, got {decoding.n_best}")
    beams = {"beam_size": decoding.beam_size, "validation_beam_size": decoding.validation_beam_size}
    if decoding.method == "sample":
        beams["n_best"] = decoding.n_best
    for key, size in beams.items():
        if decoding.batch_size * decoding.max_length * size > _MOST_SEARCHED:
            numbers = f"{decoding.batch_size:,}, {decoding.max_length:,} and {size:,}"
            keys = f"decoding.batch_size, decoding.max_length and decoding.{key}"
            raise RecipeError(f"{keys} must multiply to {_MOST_SEARCHED:,} tokens at most, got {numbers}")


def check_recipe(recipe: Recipe) -> None:
    """Refuse values that are each in their range and contradict each other.

    Raises:
        RecipeError: naming the keys, what was got and what was expected.
    """
    check_decoding(recipe.decoding)
    _check_sampling(recipe.loss)
    _check_smoothing(recipe.loss)
    _check_steps(recipe)
    if recipe.loss.consistency and getattr(recipe.model, "dropout", None) == 0:
        raise RecipeError("loss.consistency needs model.dropout above 0, got 0: without it both passes are the same")
    if recipe.training.graphs and recipe.device in ("cpu", "mps"):
        raise RecipeError(f"training.graphs needs a CUDA device, got device {recipe.device!r}")
    if recipe.loss.changes:
        key = "loss.embeddings.refresh true" if recipe.loss.embeddings.refresh else "loss.final_share below 1"
        if recipe.training.graphs:
            raise RecipeError(f"training.graphs records a loss that stays the same, and {key} changes it")
        if recipe.training.epochs == 1:
            raise RecipeError(f"{key} changes the loss after the first epoch: training.epochs must be above 1, got 1")
    if recipe.device == "mps" and (recipe.loss.needs_table or recipe.loss.samples_sequences):
        lacks = "needs float64, which MPS has not"
        raise RecipeError(f"device is 'mps', but loss.name {recipe.loss.name} {lacks}: use cpu, or the loss mle")
    task_class(recipe.task).check(recipe)


def _check_smoothing(loss: LossConfig) -> None:
    """Refuse a loss that smooths nothing, and so is the MLE."""
    if loss.name == "label_smoothing" and not loss.label_smoothing:
        raise RecipeError("loss.label_smoothing must be above 0 for loss.name label_smoothing, got 0")
    predicted = loss.consistency or loss.teacher.runs
    if loss.prior == "unigram" and not (loss.label_smoothing or predicted or _has_uniform_tail(loss)):
        needs = (
            "loss.label_smoothing or loss.consistency above 0, a teacher, or a loss of similar tokens with loss.tail"
        )
        needs += " uniform"
        raise RecipeError(f"loss.prior is 'unigram', which spreads the mass on all classes, but there is none: {needs}")
    if loss.teacher.runs and not loss.teacher.share:
        raise RecipeError("loss.teacher.share must be above 0 for loss.teacher.runs to be learned from, got 0")
    if loss.embeddings.refresh and not loss.needs_table:
        needs = f"needs a loss with a similarity table, got loss.name {loss.name}"
        raise RecipeError(f"loss.embeddings.refresh {needs}")
    shares = {"alpha": loss.alpha} if loss.name in ("tok", "seq", "seq_lazy") else {}
    if loss.name in ("tok_seq", "tok_seq_lazy"):
        shares = {"alpha": loss.alpha, "token_alpha": loss.token_alpha}
    if shares and not any(shares.values()):
        keys = " or ".join(f"loss.{key}" for key in shares)
        raise RecipeError(f"{keys} must be above 0 for loss.name {loss.name}, which is mle otherwise")
    if loss.final_share < 1 and not shares and not loss.label_smoothing:
        raise RecipeError(f"loss.final_share is {loss.final_share}, but loss.name {loss.name} has no share to lower")


def _has_uniform_tail(loss: LossConfig) -> bool:
    return loss.smooths_tokens and loss.tail == "uniform"


def _check_steps(recipe: Recipe) -> None:
    """Refuse an optimizer whose steps go nowhere."""
    optimizer, steps = recipe.optimizer, recipe.training.max_steps
    if optimizer.lr * optimizer.weight_decay >= 1:
        product = f"{optimizer.lr} and {optimizer.weight_decay}"
        raise RecipeError(f"optimizer.lr times optimizer.weight_decay must be below 1, got {product}")
    first = optimizer.lr * optimizer.decay
    if optimizer.schedule == "step" and optimizer.decay_start == 0 and first < _LEAST_RATE:
        raise RecipeError(
            f"optimizer.lr times optimizer.decay, the first rate, must be {_LEAST_RATE} at least, got {first}"
        )
    if steps is not None and optimizer.warmup_steps >= steps:
        raise RecipeError(
            f"optimizer.warmup_steps must be below training.max_steps ({steps}), got {optimizer.warmup_steps}"
        )


def _check_sampling(loss: LossConfig) -> None:
    """Refuse sequence losses whose settings exclude each other."""
    reward = loss.reward
    if loss.sampler == "edit" and loss.is_lazy:
        lengths = "draws samples of other lengths, and lazy losses score samples on the ground truth's own states"
        raise RecipeError(f"loss.sampler edit {lengths}; loss.name {loss.name.removesuffix('_lazy')} takes it")
    if loss.sampler == "edit" and loss.pool == "similar" and loss.name != "raml":
        alone = "inserts tokens too, which replace none and have no similarity row to be drawn from"
        raise RecipeError(f"loss.sampler edit {alone}; loss.pool similar needs loss.sampler hamming")
    if reward.name == "none":
        return
    if not loss.samples_sequences:
        raise RecipeError(f"loss.reward.name {reward.name} needs a loss that draws samples, got loss.name {loss.name}")
    if loss.num_samples == 1 and reward.normalize == "samples" and reward.reads_references:
        alone = "gives a single sample the weight 1 whatever its reward"
        raise RecipeError(f"loss.reward.normalize samples {alone}; use batch, or raise loss.num_samples")
