"""What a loss needs besides the model: an opened run has it in its files, for another it is built from the data."""

from __future__ import annotations

import torch
from torch import Tensor

from smoothloss.rewards import Cider
from smoothloss.similarity import SimilarityTable
from smoothloss_trainer.config import Recipe
from smoothloss_trainer.errors import RecipeError, one_line
from smoothloss_trainer.files import expand_path
from smoothloss_trainer.models import open_teachers
from smoothloss_trainer.rewards import SampleWeights
from smoothloss_trainer.run import RunDirectory
from smoothloss_trainer.table import build_table
from smoothloss_trainer.tasks import Task
from smoothloss_trainer.teachers import Teachers
from smoothloss_trainer.vocabulary import EOS


def table(recipe: Recipe, run: RunDirectory, task: Task, *, opened: bool) -> SimilarityTable | None:
    """Return the similarity table, or None for a loss without one.

    Raises:
        RecipeError: when the run's table is damaged, or fits another vocabulary.
    """
    if not recipe.loss.needs_table:
        return None
    if opened and run.table_file.is_file():
        with one_line():
            return SimilarityTable.load(run.table_file, len(task.vocabulary))
    return build_table(recipe.loss, task.vocabulary, task.target_sentences(), seed=recipe.seed)


def weights(
    recipe: Recipe, run: RunDirectory, task: Task, device: torch.device, *, opened: bool
) -> tuple[SampleWeights | None, Cider | None]:
    """Return what weighs the samples by their reward, and the document frequencies behind it, or None for each.

    Raises:
        RecipeError: when the run's document frequencies are damaged.
    """
    config = recipe.loss.reward
    if not recipe.loss.samples_sequences or config.name == "none":
        return None, None
    needed = config.reads_references and (config.references == "all" or config.name == "cider")
    references = task.training_references() if needed else None
    cider = None
    if config.name == "cider" and references is not None:
        cider = _load_cider(run) if opened and run.cider_file.is_file() else Cider(references)
    on_device = None if references is None or config.references == "own" else references.to(device)
    return SampleWeights(config, on_device, cider, device), cider


def prior(recipe: Recipe, task: Task) -> Tensor | None:
    """``(V,)`` float64 frequencies of the target tokens, EOS once a sentence; None for a uniform prior."""
    if recipe.loss.prior == "uniform":
        return None
    counts = torch.tensor(task.vocabulary.counts, dtype=torch.float64)
    counts[EOS] = sum(1 for _ in task.target_sentences())
    return counts / counts.sum()


def teachers(recipe: Recipe, task: Task) -> Teachers | None:
    """Return the models that are learned from, on the CPU, or None where the recipe has none.

    Raises:
        RecipeError: when one is missing or damaged, or reads or writes something else than the task.
    """
    config = recipe.loss.teacher
    if not config.runs:
        return None
    try:
        models = open_teachers([expand_path(path) for path in config.runs], task)
    except RecipeError as error:
        raise RecipeError(f"loss.teacher.runs: {error}") from None
    return Teachers(models, config.classes)


def _load_cider(run: RunDirectory) -> Cider:
    with one_line():
        return Cider.load(run.cider_file)
