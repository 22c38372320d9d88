"""How training begins, goes on from a checkpoint, and ends."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from smoothloss.rewards import Cider
from smoothloss.similarity import SimilarityTable
from smoothloss_trainer import loss_inputs
from smoothloss_trainer.config import Recipe
from smoothloss_trainer.distributed import Processes, others_may_end
from smoothloss_trainer.evaluation import result_files
from smoothloss_trainer.run import RunDirectory
from smoothloss_trainer.tasks import task_class
from smoothloss_trainer.trainer import Trainer


def train(recipe: Recipe, run: RunDirectory, *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Train a recipe in a run directory, and score the best checkpoint on the test splits.

    Args:
        recipe: What to train.
        run: Where.
        resume: Go on from the run's last checkpoint. The losses are those of a run that was never interrupted.
        overwrite: Start anew, removing the files of the run that is there.

    Returns:
        The scores of every test split by name, or of the validation part where there is none; nothing in processes
        other than the first.

    Raises:
        RecipeError: before training starts, when something is missing or contradictory, or another process trains
            there.
        RunError: when training diverges, or another process of it has ended.
    """
    processes = Processes(recipe.device, recipe.training.parallel)
    with ExitStack() as held:

        def check() -> bool:
            held.enter_context(run.lock())
            return run.check(recipe, resume=resume, overwrite=overwrite)

        goes_on = processes.first(check)
        begun: list[Trainer] = []
        processes.first(lambda: begun.append(_begin(recipe, run, processes, goes_on=goes_on)))
        # The others read what the first one has written.
        trainer = begun[0] if begun else _open(recipe, run, processes, opened=True)[0]
        trainer.prepare()
        with others_may_end():
            if goes_on:
                trainer.restore()
            else:
                trainer.save()
            trainer.run_epochs()
            scores = trainer.test()
        processes.close()
    return scores


def _begin(recipe: Recipe, run: RunDirectory, processes: Processes, *, goes_on: bool) -> Trainer:
    """Check all that can be checked before training, and write what is known then."""
    trainer, table, cider = _open(recipe, run, processes, opened=goes_on)
    task, splits = trainer.task, trainer.scored_splits
    trainer.check_metric()
    if not goes_on:
        trainer.check_warmup()
    names = ["report.html", *(name for split in splits for name in result_files(task, split))]
    parts = ["train", "validation", *(f"vocabulary.{name}" for name in task.vocabularies)]
    if goes_on:
        run.check_data(task, parts)
        run.check_teachers(trainer.teachers)
    fingerprints = {part: task.fingerprint(part) for part in dict.fromkeys([*parts, *task.test_splits])}
    if goes_on:
        run.go_on(recipe, names, fingerprints)
        return trainer
    names += [run.name(file) for file, kept in ((run.table_file, table), (run.cider_file, cider)) if kept is not None]
    notes = task.notes()
    names += [run.name(run.notes_file)] if notes else []
    run.create(recipe, task.vocabularies, names, fingerprints)
    run.note_teachers(trainer.teachers)
    run.write_notes(notes)
    if table is not None:
        table.save(run.table_file)
    if cider is not None:
        cider.save(run.cider_file)
    return trainer


def _open(
    recipe: Recipe, run: RunDirectory, processes: Processes, *, opened: bool
) -> tuple[Trainer, SimilarityTable | None, Cider | None]:
    """Data, model and what the loss needs, of which an ``opened`` run has some."""
    task = task_class(recipe.task)(recipe, run.vocabularies() if opened else None)
    table = loss_inputs.table(recipe, run, task, opened=opened)
    weights, cider = loss_inputs.weights(recipe, run, task, processes.device, opened=opened)
    return Trainer(recipe, run, task, table, processes, weights), table, cider


def open_trainer(recipe: Recipe, run: RunDirectory, processes: Processes) -> Trainer:
    """A trainer that stands at its beginning, of a run that has written nothing."""
    return _open(recipe, run, processes, opened=False)[0]
