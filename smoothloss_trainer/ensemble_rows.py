"""Rows of a table that train nothing: the models of all seeds of another row, as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smoothloss_trainer.evaluation import evaluate_into
from smoothloss_trainer.models import open_checkpoints


@dataclass(frozen=True)
class EnsembleRow:
    """The models of a row, each word by the mean of their probabilities.

    Args:
        key: Of this row.
        of: Key of the row whose models they are.
        seeds: Those of the models.
        folder: Gets the scores; other seeds have another one.
    """

    key: str
    of: str
    seeds: list[int]
    folder: Path

    @classmethod
    def below(cls, out: Path, key: str, of: str, seeds: Sequence[int]) -> EnsembleRow:
        """The row of a table that is written to ``out``."""
        return cls(key, of, list(seeds), out / key / f"seeds_{'_'.join(map(str, seeds))}")

    def is_done(self, split: str) -> bool:
        """Whether it was scored; its scores are the last file to be written."""
        return (self.folder / f"scores.{split}.json").is_file()


def score(paths: Sequence[Path], folder: Path, split: str) -> None:
    """Score the best checkpoints of runs, as one model, on a split, and write that to a folder."""
    recipe, task, model, device = open_checkpoints(paths, splits=[split])
    for _ in evaluate_into(folder, task, model, [split], recipe.decoding, device):
        pass
