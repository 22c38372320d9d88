"""A table of runs: what its file says."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.folder import LOCK, check_part_name
from smoothloss_trainer.recipe import read_yaml
from smoothloss_trainer.schema import FilePath, Seed, SplitName, Words, build

FILES = ("table.md", "table.json", "report.html")  # besides the runs and their logs


@dataclass
class TableRow:
    """A row: one recipe, trained once for each seed, or the models of such a row as an ensemble.

    Args:
        recipe: Its file, relative to the table's.
        ensemble: Instead of a recipe: the key of another row, the models of whose seeds are one here. They have to be
            trained here, since a record holds no models.
        teacher: Of a recipe: the key of a row above, whose model of the same seed is learned from
            (``loss.teacher.runs``). It has to be trained here.
        label: Its name in the table; left out, the row's key.
        paper: What the paper reports, by metric.
        overrides: Changes to the recipe, as on the command line: ``{"loss.tau": 0.17}``.
    """

    recipe: FilePath | None = None
    ensemble: Words | None = None
    teacher: Words | None = None
    label: Words | None = None
    paper: dict[str, float] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def needs(self) -> set[str]:
        """The keys of the rows whose models this one needs."""
        return {key for key in (self.ensemble, self.teacher) if key is not None}


@dataclass
class Table:
    """A table of runs.

    Args:
        title: Its title.
        rows: The rows by key, which names their directories.
        metrics: Heading of each metric's column by its key in ``scores.<split>.json``. Significance is that of the
            task's own metric, the first.
        baseline: Key of the row that the others are compared with.
        split: What is scored: a test split, or "validation" to choose temperatures and shares by.
        seeds: What each row is trained with.
        overrides: Changes to every row's recipe; a row's own come after them.
        note: What differs from the paper.
    """

    title: Words
    rows: dict[Words, TableRow]
    metrics: dict[Words, Words]
    baseline: str
    split: SplitName = "test"
    seeds: list[Seed] = field(default_factory=lambda: [1, 2])
    overrides: dict[str, Any] = field(default_factory=dict)
    note: str = ""


def load_table(path: str | Path) -> Table:
    """Read a table's file.

    Raises:
        RecipeError: one line that names the wrong key or value, or a row's recipe that is missing.
    """
    try:
        table = build(Table, read_yaml(Path(path)))
    except RecipeError as error:
        raise RecipeError(f"table {path}: {error}") from None
    if table.baseline not in table.rows:
        raise RecipeError(f"table {path}: baseline must be one of {', '.join(table.rows)}, got {table.baseline!r}")
    for row in table.rows:
        check_part_name(row, f"table {path}: the key of a row")
        if row in (*FILES, "runs.json", LOCK):
            raise RecipeError(f"table {path}: {row} is a file beside the rows: give the row another key")
        _check_row(table, row, path)
    if not table.metrics or not table.seeds:
        raise RecipeError(f"table {path}: metrics and seeds must not be empty")
    return table


def _check_row(table: Table, key: str, path: str | Path) -> None:
    row = table.rows[key]
    if (row.recipe is None) == (row.ensemble is None):
        raise RecipeError(f"table {path}: rows.{key} must have either a recipe or an ensemble")
    trained = [name for name, other in table.rows.items() if other.recipe is not None]
    if row.teacher is not None:
        above = trained[: trained.index(key)] if key in trained else []
        if row.teacher not in above:
            expected = f"the key of a row above with a recipe ({', '.join(above) or 'there is none'})"
            raise RecipeError(f"table {path}: rows.{key}.teacher must be {expected}, got {row.teacher!r}")
    if row.ensemble is None:
        return
    if row.ensemble not in trained:
        expected = f"the key of a row with a recipe ({', '.join(trained)})"
        raise RecipeError(f"table {path}: rows.{key}.ensemble must be {expected}, got {row.ensemble!r}")
    if row.overrides:
        raise RecipeError(f"table {path}: rows.{key}.overrides: an ensemble has the settings of {row.ensemble}")


def override_words(overrides: dict[str, Any]) -> list[str]:
    """Changes to a recipe as they are given on the command line."""

    def word(value: Any) -> str:
        return value if isinstance(value, str) else json.dumps(value)

    return [each for key, value in overrides.items() for each in (f"--{key}", word(value))]
