"""How recipes are read and checked.

A recipe is a YAML file with the fields of :class:`~smoothloss.trainer.config.Recipe`. ``base: other.yaml`` takes
everything from another recipe (relative to the file that names it) and changes only what is written below it; the
command line (``--training.epochs 3``) comes last.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from smoothloss.trainer.config import DecodingConfig, LossConfig, OptimizerConfig, Recipe, TrainingConfig
from smoothloss.trainer.errors import RecipeError
from smoothloss.trainer.tasks import task_class


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a recipe file with its chain of ``base:`` files merged in.

    Raises:
        RecipeError: when a file is missing, is no YAML mapping, or is its own base.
    """
    return _read_chain(path, ())


def _read_chain(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve()
    if path in seen:
        raise RecipeError(f"recipe {path} is its own base")
    if not path.is_file():
        raise RecipeError(f"no such recipe: {path}" + (f" (base of {seen[-1]})" if seen else ""))
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise RecipeError(f"recipe {path} must be a mapping of keys to values, got {type(values).__name__}")
    base = values.pop("base", None)
    return values if base is None else _merge(_read_chain(path.parent / str(base), (*seen, path)), values)


def recipe_parser(task: str) -> ArgumentParser:
    """The parser of a recipe of one task: all its keys, as ``--section.key``, with types, defaults and help."""
    kind = task_class(task)
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, prog="smoothloss train RECIPE", default_env=False)
    parser.add_argument("--task", type=str, required=True, help="translation, captioning, ...")
    parser.add_argument("--name", type=str, default="run", help="shown in reports; names the run directory")
    parser.add_argument("--seed", type=int, default=1, help="seeds weights, batches, dropout and samples")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1")
    sections = {"data": kind.data_config, "model": kind.model_config, "loss": LossConfig}
    sections |= {"optimizer": OptimizerConfig, "training": TrainingConfig, "decoding": DecodingConfig}
    for key, config in sections.items():
        parser.add_class_arguments(config, key)
    return parser


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def parse_recipe(values: dict[str, Any], overrides: list[str] | None = None) -> Recipe:
    """A :class:`Recipe` from a mapping and command-line overrides (``["--training.epochs", "3"]``).

    Raises:
        RecipeError: one line that names the wrong key or value.
    """
    parser = recipe_parser(str(values.get("task", "")))
    try:
        parsed: Namespace = parser.parse_object(values)
        if overrides:
            parsed = parser.parse_args(overrides, namespace=parsed)
    except (ArgumentError, TypeError, ValueError) as error:
        raise RecipeError(_one_line(error)) from None
    # The method was renamed; the extra allows both sides of that.
    built = (parser.instantiate if hasattr(parser, "instantiate") else parser.instantiate_classes)(parsed)
    recipe = Recipe(**{key: value for key, value in vars(built).items() if key in Recipe.__dataclass_fields__})
    check_recipe(recipe)
    return recipe


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe file, its bases and the command line's overrides.

    Raises:
        RecipeError: one line that names the file, key or value that is wrong.
    """
    try:
        return parse_recipe(read_yaml(Path(path)), overrides)
    except RecipeError as error:
        message = str(error)
        raise RecipeError(message if str(path) in message else f"recipe {path}: {message}") from None


def check_decoding(decoding: DecodingConfig) -> None:
    """Refuse values of the right type that no search can follow.

    Raises:
        RecipeError: naming the key, what was got and what was expected.
    """
    for name in ("beam_size", "max_length", "n_best", "temperature", "validation_beam_size", "batch_size"):
        if not getattr(decoding, name) > 0:
            raise RecipeError(f"decoding.{name} must be positive, got {getattr(decoding, name)}")
    for name in ("length_penalty", "no_repeat_ngram_size", "top_k"):
        if not getattr(decoding, name) >= 0:
            raise RecipeError(f"decoding.{name} must not be negative, got {getattr(decoding, name)}")
    if not 0.0 < decoding.top_p <= 1.0:
        raise RecipeError(f"decoding.top_p must be above 0 and at most 1, got {decoding.top_p}")
    if decoding.method == "beam" and decoding.n_best > decoding.beam_size:
        expected = f"at most decoding.beam_size ({decoding.beam_size})"
        raise RecipeError(f"decoding.n_best must be {expected}, got {decoding.n_best}")


def check_recipe(recipe: Recipe) -> None:
    """Refuse values that have the right type and still make no sense.

    Raises:
        RecipeError: naming the key, what was got and what was expected.
    """
    check_decoding(recipe.decoding)
    loss, training = recipe.loss, recipe.training
    for key, number in {
        "training.keep_checkpoints": training.keep_checkpoints,
        "optimizer.warmup_steps": recipe.optimizer.warmup_steps,
    }.items():
        if number < 0:
            raise RecipeError(f"{key} must not be negative, got {number}")
    shares = {"loss.alpha": loss.alpha, "loss.token_alpha": loss.token_alpha}
    shares |= {"loss.label_smoothing": loss.label_smoothing}
    for key, share in shares.items():
        if not 0.0 <= share <= 1.0:
            raise RecipeError(f"{key} must be between 0 and 1, got {share}")
    positive = {"loss.token_tau": loss.token_tau, "loss.tau": loss.tau, "loss.num_samples": loss.num_samples}
    positive |= {"loss.neighbours": loss.neighbours, "loss.max_insertions": loss.max_insertions}
    positive |= {"loss.reward.tau": loss.reward.tau}
    positive |= {"training.epochs": training.epochs}
    positive |= {"training.batch_size": training.batch_size, "training.validate_every": training.validate_every}
    positive |= {"training.log_every": training.log_every, "optimizer.lr": recipe.optimizer.lr}
    positive |= {"optimizer.decay_every": recipe.optimizer.decay_every, "training.accumulate": training.accumulate}
    for key, value in positive.items():
        if not value > 0:
            raise RecipeError(f"{key} must be positive, got {value}")
    _check_sampling(loss)


def _check_sampling(loss: LossConfig) -> None:
    """Refuse sequence losses whose settings exclude each other."""
    reward = loss.reward
    if loss.sampler == "edit" and loss.is_lazy:
        lengths = "draws samples of other lengths, and lazy losses score samples on the ground truth's own states"
        raise RecipeError(f"loss.sampler edit {lengths}; loss.name {loss.name.removesuffix('_lazy')} takes it")
    if loss.sampler == "edit" and loss.pool == "similar" and loss.name != "raml":
        alone = "inserts tokens too, which replace none and have no similarity row to be drawn from"
        raise RecipeError(f"loss.sampler edit {alone}; loss.pool similar needs loss.sampler hamming")
    if not 1 <= reward.bleu_order <= 8:
        raise RecipeError(f"loss.reward.bleu_order must be between 1 and 8, got {reward.bleu_order}")
    if reward.name == "none":
        return
    if not loss.samples_sequences:
        raise RecipeError(f"loss.reward.name {reward.name} needs a loss that draws samples, got loss.name {loss.name}")
    if loss.num_samples == 1 and reward.normalize == "samples" and reward.reads_references:
        alone = "gives a single sample the weight 1 whatever its reward"
        raise RecipeError(f"loss.reward.normalize samples {alone}; use batch, or raise loss.num_samples")
