"""What the rows of a table were trained with, drawn from their recipes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from smoothloss_trainer.comparison import recipe_values
from smoothloss_trainer.config import LossConfig, Recipe
from smoothloss_trainer.documents import flat

_SHOWN: tuple[str, ...] = (
    "training.epochs",
    "training.max_steps",
    "training.max_minutes",
    "training.patience",
    "training.batch_size",
)
_SHOWN += ("training.clip", "optimizer.lr", "optimizer.schedule", "optimizer.decay", "optimizer.decay_start")
_SHOWN += ("optimizer.weight_decay", "decoding.beam_size", "decoding.length_penalty")
_OFF = (None, 0, 0.0)  # of keys that are left out then


def loss_settings(recipe: Recipe) -> dict[str, Any]:
    """What a recipe's loss says beyond the defaults, by key: ``{"name": "seq", "alpha": 0.3}``."""
    default, own = flat(asdict(LossConfig())), flat(asdict(recipe.loss))
    return {"name": recipe.loss.name, **{key: value for key, value in own.items() if value != default[key]}}


def settings_note(recipes: Mapping[str, Sequence[Recipe]]) -> str:
    """What all runs of a table have in common besides the loss, and where rows differ.

    Args:
        recipes: The recipes of each row's runs by its label.
    """
    by_row = {row: [flat(recipe_values(recipe)) for recipe in each] for row, each in recipes.items() if each}
    every = [values for each in by_row.values() for values in each]
    if not every:
        return ""
    model = sorted({key for values in every for key in values if key.startswith("model.")})
    common, differing = [], []
    for key in (*model, *_SHOWN):
        values = [each.get(key) for each in every]
        if all(value in _OFF for value in values):
            continue
        if all(value == values[0] for value in values):
            common.append(f"{key} {_shown(values[0])}")
            continue
        differing.append(f"{key}: {_by_row({row: _distinct(each, key) for row, each in by_row.items()})}")
    text = f"Settings of these runs, from their recipes: {', '.join(common)}."
    return f"{text} They differ in {'; '.join(differing)}." if differing else text


def _by_row(values: Mapping[str, Sequence[Any]]) -> str:
    """The rows that have each value, after what more than half of them have."""
    rows: dict[str, list[str]] = defaultdict(list)
    for row, own in values.items():
        rows[" and ".join(map(_shown, own))].append(f'"{row}"')
    usual = max(rows, key=lambda value: len(rows[value]))
    said = f"{usual}, but " if 2 * len(rows[usual]) > len(values) else ""
    return said + ", ".join(
        f"{value} for {', '.join(each)}" for value, each in rows.items() if not said or value != usual
    )


def _distinct(values: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    found: list[Any] = []
    for each in values:
        if each.get(key) not in found:
            found.append(each.get(key))
    return found


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
