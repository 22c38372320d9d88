"""Whether two recipes are of the same run: which keys may differ, and which one does that may not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from smoothloss_trainer.config import Recipe
from smoothloss_trainer.documents import flat

# Keys that may differ between a run and its resumption: they say how long, how often and where, not what.
FREE_KEYS: tuple[str, ...] = ("name", "device", "decoding.", "data.", "training.epochs", "training.max_steps")
FREE_KEYS += ("training.max_minutes", "training.checkpoint_every", "training.patience", "training.keep_checkpoints")
FREE_KEYS += ("training.tensorboard", "training.test", "training.parallel", "training.workers", "training.graphs")
FREE_KEYS += ("loss.teacher.runs",)  # models have fingerprints: see RunDirectory.check_teachers
# What of the data makes up the vocabularies and batches. Paths may change: data may move.
FIXED_KEYS: tuple[str, ...] = ("data.batch_tokens", "data.bpe", "data.joint_vocabulary", "data.max_length")
FIXED_KEYS += ("data.held_out", "data.split_seed", "data.tokenize", "data.min_count", "data.max_words")
# Free keys that are of no consequence for what a finished run has come to.
IDLE_KEYS: tuple[str, ...] = ("name", "device", "data.", "decoding.batch_size", "training.checkpoint_every")
IDLE_KEYS += ("training.keep_checkpoints", "training.tensorboard", "training.parallel", "training.workers")
IDLE_KEYS += ("training.graphs",)


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values, ready for YAML: what :func:`~smoothloss_trainer.recipe.parse_recipe` reads."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(recipe)))
    return plain


def difference(there: Recipe, here: Recipe, free: tuple[str, ...] = IDLE_KEYS) -> str | None:
    """In words, the first key with another value in a run's recipe than in this, which may not differ.

    Args:
        there: The run's.
        here: This one.
        free: What a key that may differ is or begins with; by default, what has no say in a finished run's scores.
    """
    new, old = _comparable(here), _comparable(there)
    for key in sorted({*new, *old}):
        may_differ = key.startswith(free) and not key.startswith(FIXED_KEYS)
        if new.get(key) != old.get(key) and not may_differ:
            return f"{key} is {old.get(key)!r} there and {new.get(key)!r} in the recipe"
    return None


def _comparable(recipe: Recipe) -> dict[str, Any]:
    """A recipe's values by key; of a teacher's path its end, row and seed in a table, since folders move."""
    values = flat(recipe_values(recipe))
    values["loss.teacher.runs"] = ["/".join(Path(path).parts[-2:]) for path in recipe.loss.teacher.runs]
    return values
