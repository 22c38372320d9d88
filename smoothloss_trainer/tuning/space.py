"""What ``smoothloss tune`` may vary: the ``tune:`` section of a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smoothloss_trainer.comparison import recipe_values
from smoothloss_trainer.config import Recipe
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.packages import optional_package
from smoothloss_trainer.recipe import parse_recipe, read_yaml, recipe_keys
from smoothloss_trainer.schema import Count, CountOrNone, Key, Seed, build, check, shown, unknown_key
from smoothloss_trainer.tasks import task_class

# What all trials must have in common, for their scores to compare.
_FIXED = ("task", "name", "device", "seed", "training.metric", "training.test", "data.")
_FACTOR = 4.0  # how far a bare `log` reaches, up and down from the recipe's own value
_EXAMPLE = "such as tune: {space: {loss.alpha: [0.05, 0.9]}}"
Distribution = Any  # of optuna.distributions


@dataclass
class TuneConfig:
    """What is varied, and how often.

    Args:
        space: Values by key of the recipe. ``[0.05, 0.9]``: from the one to the other, whole where the key takes whole
            numbers. ``{log: [0.01, 1]}``: the same on a logarithmic scale. ``log``: from a quarter of the recipe's own
            value to four times it, on such a scale. ``{choices: [batch, vocabulary]}``: one of these.
        trials: How many settings are tried, those that were stopped or failed among them. The first is the recipe
            as it stands, where the space holds it.
        seed: Seeds what is drawn. Runs are seeded by the recipe, all alike.
        startup: Trials that are drawn at random and trained to their end, before others are compared with them.
        warmup: Epochs that every trial may train before it can be stopped.
    """

    space: dict[str, Any] = field(default_factory=dict)
    trials: Count = 20
    seed: Seed = 1
    startup: Count = 5
    warmup: CountOrNone = 2


@dataclass(frozen=True)
class Plan:
    """A recipe and what is varied in it.

    Args:
        values: The recipe's plain values.
        config: Its ``tune:`` section.
        space: Optuna's distributions by key.
        recipe: The recipe as it stands.
    """

    values: dict[str, Any]
    config: TuneConfig
    space: dict[str, Distribution]
    recipe: Recipe

    def recipe_of(self, settings: Mapping[str, Any]) -> Recipe:
        """The recipe with these settings in it.

        Raises:
            RecipeError: when they contradict each other.
        """
        return parse_recipe(put(self.values, settings))


def read_plan(path: str | Path, overrides: Sequence[str] = ()) -> Plan:
    """Read a recipe with a ``tune:`` section.

    Args:
        path: Its file, or the name of one that comes with the package.
        overrides: Words of the command line that change the recipe.

    Raises:
        RecipeError: one line that names the wrong key or value.
        RunError: when Optuna is not installed.
    """
    values = read_yaml(Path(path))
    try:
        if not isinstance(values.get("tune"), dict):
            raise RecipeError(f"it has no tune: section, {_EXAMPLE}")
        config = build(TuneConfig, values.pop("tune"), key="tune")
        values = _without_test(values)
        own = put(recipe_values(parse_recipe(values, overrides)), {"training.test": False})
        recipe = parse_recipe(own)
        return Plan(own, config, _space(config, recipe), recipe)
    except RecipeError as error:
        raise RecipeError(f"recipe {path}: {error}") from None


def _without_test(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a recipe that reads nothing of test parts, whether their files are there or not."""
    values = put(values, {"training.test": False})
    kind = task_class(values.get("task", ""))
    if isinstance(values.get("data"), dict):
        values["data"] = kind.without_test(values["data"])
    return values


def put(values: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The values with some of them changed, by key: ``{"loss.alpha": 0.3}``."""
    changed = dict(values)
    for key, value in settings.items():
        head, _, rest = key.partition(".")
        inner = changed.get(head)
        changed[head] = put(inner if isinstance(inner, dict) else {}, {rest: value}) if rest else value
    return changed


def value_of(recipe: Recipe, key: str) -> Any:
    """What a recipe says for a key."""
    value: Any = recipe
    for name in key.split("."):
        value = getattr(value, name)
    return value


def _space(config: TuneConfig, recipe: Recipe) -> dict[str, Distribution]:
    if not config.space:
        raise RecipeError(f"tune.space is empty, it must name what is varied, {_EXAMPLE}")
    keys = {name: key for name, key in recipe_keys(recipe.task).items() if not key.is_section}
    found = {}
    for name, given in config.space.items():
        if name not in keys:
            raise unknown_key(f"tune.space.{name}", [f"tune.space.{key}" for key in keys])
        if name.startswith(_FIXED):
            raise RecipeError(f"tune.space.{name}: trials that differ in {name} do not compare")
        found[name] = _distribution(keys[name], given, value_of(recipe, name))
    return found


def _distribution(key: Key, given: Any, own: Any) -> Distribution:
    what = f"tune.space.{key.name}"
    if given == "log":
        return _range(key, what, _around(key, what, own), log=True)
    if isinstance(given, list):
        return _range(key, what, given, log=False)
    if isinstance(given, dict) and len(given) == 1:
        [(kind, values)] = given.items()
        if kind == "log":
            return _range(key, what, values, log=True)
        if kind == "choices":
            return _choices(key, what, values)
    expected = "[low, high], {log: [low, high]}, log or {choices: [...]}"
    raise RecipeError(f"{what} must be {expected}, got {shown(given)}")


def _kinds(key: Key) -> set[str | None]:
    return {each.get("type") for each in key.schema.get("anyOf", [key.schema])}


def _around(key: Key, what: str, own: Any) -> list[Any]:
    """A range around a recipe's own value, inside that of the key."""
    if isinstance(own, bool) or not isinstance(own, int | float) or own <= 0:
        raise RecipeError(f"{what}: log goes around the recipe's own value, which is {shown(own)}: give a range")
    low, high = own / _FACTOR, own * _FACTOR
    if "integer" in _kinds(key):
        low, high = max(1, int(low)), int(high)
    bounds = [each for each in key.schema.get("anyOf", [key.schema]) if each.get("type") in ("integer", "number")]
    least = max((each["minimum"] for each in bounds if "minimum" in each), default=low)
    most = min((each["maximum"] for each in bounds if "maximum" in each), default=high)
    return [max(low, least), min(high, most)]


def _range(key: Key, what: str, values: Any, *, log: bool) -> Distribution:
    optuna = _optuna()
    if not {"integer", "number"} & _kinds(key):
        raise RecipeError(f"{what}: {key.name} is no number: write {{choices: [...]}}")
    if not isinstance(values, list) or len(values) != 2:
        raise RecipeError(f"{what} must have two ends, [low, high], got {shown(values)}")
    low, high = (check(key.hint, value, what) for value in values)
    if low is None or high is None:
        raise RecipeError(f"{what} must have two numbers for ends, got {shown(values)}")
    if not low < high:
        raise RecipeError(f"{what} must go from a lower to a higher end, got {shown(values)}")
    if log and low <= 0:
        raise RecipeError(f"{what} must begin above 0 on a logarithmic scale, got {shown(values)}")
    whole = "integer" in _kinds(key)
    kind = optuna.distributions.IntDistribution if whole else optuna.distributions.FloatDistribution
    return kind(low, high, log=log)


def _choices(key: Key, what: str, values: Any) -> Distribution:
    optuna = _optuna()
    if not isinstance(values, list) or not values:
        raise RecipeError(f"{what}: choices must be a list that is not empty, got {shown(values)}")
    checked = [check(key.hint, value, what) for value in values]
    if not all(value is None or isinstance(value, bool | int | float | str) for value in checked):
        raise RecipeError(f"{what}: choices must be numbers, text, true, false or null, got {shown(values)}")
    if len({repr(value) for value in checked}) < len(checked):
        raise RecipeError(f"{what}: choices must differ from each other, got {shown(values)}")
    return optuna.distributions.CategoricalDistribution(checked)


def _optuna() -> Any:
    return optional_package("optuna", "smoothloss tune", "tune")
