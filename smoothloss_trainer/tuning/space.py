"""What the keys of a recipe may be while they are tuned.

loss.alpha: [0.05, 0.9]            from 0.05 to 0.9; of whole numbers where both ends are whole
loss.tau: {log: [0.05, 1.0]}       the same, evenly in the logarithm
loss.beta: log                     evenly in the logarithm over all that the key takes
loss.pool: {choices: [batch, vocabulary]}
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.recipe import load_recipe, read_yaml, recipe_keys
from smoothloss_trainer.schema import unknown_key

if TYPE_CHECKING:
    from optuna.trial import Trial

# What a search must not touch: what is tuned on, and how it is scored.
_FIXED = ("task", "name", "device", "data.", "decoding.", "training.metric", "training.tests")
_MOST_CORNERS = 64


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both among them.

    Args:
        low: The least.
        high: The largest.
        log: Whether evenly in the logarithm.
    """

    low: float
    high: float
    log: bool = False

    def suggest(self, trial: Trial, key: str) -> float:
        """What a trial takes."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(key, self.low, self.high, log=self.log)
        return trial.suggest_float(key, self.low, self.high, log=self.log)

    @property
    def ends(self) -> Sequence[Any]:
        """Values that must all be allowed for all others to be."""
        return (self.low, self.high)

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{', evenly in the logarithm' if self.log else ''}"


@dataclass(frozen=True)
class Choices:
    """One of several values."""

    values: tuple[Any, ...]

    def suggest(self, trial: Trial, key: str) -> Any:
        """What a trial takes."""
        return trial.suggest_categorical(key, self.values)

    @property
    def ends(self) -> Sequence[Any]:
        """All of them."""
        return self.values

    def __str__(self) -> str:
        return " or ".join(map(word, self.values))


Space = Mapping[str, Range | Choices]


def word(value: Any) -> str:
    """A value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def words(values: Mapping[str, Any]) -> list[str]:
    """Values as overrides on the command line."""
    return [each for key, value in values.items() for each in (f"--{key}", word(value))]


def load_space(path: Path, recipe: Path, overrides: Sequence[str]) -> Space:
    """Read a space and look whether the recipe can take all of it.

    Raises:
        RecipeError: one line that names the file, and the key or value that is wrong.
    """
    task = load_recipe(recipe, overrides).task
    try:
        values = read_yaml(path)
        if not values:
            raise RecipeError("it names no key, such as loss.alpha: [0.05, 0.9]")
        space = {str(key): _domain(str(key), value, task) for key, value in values.items()}
        _try(space, recipe, overrides)
    except RecipeError as error:
        message = str(error)
        raise RecipeError(message if str(path) in message else f"space {path}: {message}") from None
    return space


def _domain(key: str, value: Any, task: str) -> Range | Choices:
    keys = recipe_keys(task)
    if key not in keys or keys[key].is_section:
        raise unknown_key(key, [name for name, each in keys.items() if not each.is_section])
    if key.startswith(_FIXED):
        raise RecipeError(f"{key} cannot be tuned: it says what is trained on, or how it is scored")
    if value == "log":
        return _log_range(key, _limits(keys[key].schema))
    if isinstance(value, list):
        return _range(key, value, log=False)
    if isinstance(value, dict) and list(value) == ["log"]:
        return _log_range(key, value["log"])
    if isinstance(value, dict) and list(value) == ["choices"]:
        return _choices(key, value["choices"])
    forms = "[low, high], {log: [low, high]}, log or {choices: [one, another]}"
    raise RecipeError(f"{key} must be {forms}, got {word(value)[:60]}")


def _range(key: str, value: Any, *, log: bool) -> Range:
    numbers = isinstance(value, list) and all(type(each) in (int, float) for each in value)
    if not numbers or len(value) != 2 or not value[0] < value[1]:
        hint = "; {choices: [...]} lists values" if isinstance(value, list) else ""
        raise RecipeError(f"{key} must be a range of two numbers, the lower one first{hint}, got {word(value)[:60]}")
    return Range(value[0], value[1], log)


def _log_range(key: str, value: Any) -> Range:
    if value is None:
        raise RecipeError(f"{key}: log needs its range, {{log: [low, high]}}: the key's own does not begin above 0")
    found = _range(key, value, log=True)
    if found.low <= 0:
        raise RecipeError(f"{key} must begin above 0 for a logarithm, got {found.low:g}")
    return found


def _limits(schema: Mapping[str, Any]) -> list[float] | None:
    """The numbers from which and to which a key goes, where it says both and they have logarithms."""
    for each in (schema, *schema.get("anyOf", [])):
        low, high = each.get("minimum", 0), each.get("maximum", 0)
        if 0 < low < high:
            return [low, high]
    return None


def _choices(key: str, value: Any) -> Choices:
    plain = isinstance(value, list) and all(isinstance(each, str | int | float | bool | None) for each in value)
    if not plain or len(value) < 2 or len(set(map(word, value))) < len(value):
        raise RecipeError(f"{key} must have two or more different choices, got {word(value)[:60]}")
    return Choices(tuple(value))


def _try(space: Space, recipe: Path, overrides: Sequence[str]) -> None:
    """Refuse a space of which no corner makes a recipe, or an end that none can have.

    Raises:
        RecipeError: what the last corner with that end was refused for.
    """
    combinations = itertools.product(*(domain.ends for domain in space.values()))
    refused: dict[tuple[str, str], RecipeError] = {}
    allowed: set[tuple[str, str]] = set()
    for corner in itertools.islice(combinations, _MOST_CORNERS):
        values = dict(zip(space, corner, strict=True))
        ends = [(key, word(value)) for key, value in values.items()]
        try:
            load_recipe(recipe, [*overrides, *words(values)])
            allowed.update(ends)
        except RecipeError as error:
            refused.update(dict.fromkeys(ends, error))
    for end, reason in refused.items():
        if end not in allowed:
            raise reason
