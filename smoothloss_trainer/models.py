"""Models of runs, ready to evaluate: one, an ensemble of several, or the average of a run's last checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from smoothloss_trainer.checkpoint import (
    average_checkpoints,
    load_checkpoint,
    load_model,
    put_model,
    save_checkpoint,
    without_prefix,
)
from smoothloss_trainer.config import Recipe
from smoothloss_trainer.decoding import Ensemble
from smoothloss_trainer.devices import choose_device
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.run import RunDirectory
from smoothloss_trainer.tasks import Reader, SequenceModel, Task, task_class


def open_checkpoints(
    paths: Sequence[str | Path], device: str | None = None, splits: Sequence[str] | None = None
) -> tuple[Recipe, Task, SequenceModel | Ensemble, torch.device]:
    """Recipe and task of the first checkpoint, and its model, or the ensemble of all of them.

    Args:
        paths: Run directories, which stand for their best checkpoint, or checkpoint files of runs.
        device: Where the models go; None: where the first recipe says.
        splits: The splits that are to be evaluated; None: the first run's test splits.

    Raises:
        RecipeError: when there is no such run, checkpoint or split, the models do not read and write the same tokens,
            or a run's vocabularies or one of these splits are not those it was trained with.
    """
    located = [_locate(Path(path)) for path in paths]
    tasks = {run.path: open_task(run) for run in dict(located)}
    (first, task), *others = tasks.items()
    splits = task.test_splits if splits is None else splits
    check_splits(task, splits)
    for other in others:
        _check_alike((first, task), other, splits)
    for path, opened in tasks.items():
        RunDirectory(path).check_data(opened, _parts(opened, splits))
    recipe = RunDirectory(first).recipe()
    place = choose_device(device or recipe.device)
    models = []
    for run, file in located:
        models.append(tasks[run.path].build_model())
        load_model(file, models[-1])
    return recipe, task, (models[0] if len(models) == 1 else Ensemble(models)).to(place), place


def open_teachers(paths: Sequence[str | Path], task: Task) -> list[SequenceModel]:
    """The models of checkpoints that read and write what a task does, on the CPU and in evaluation mode.

    Args:
        paths: Run directories, which stand for their best checkpoint, or checkpoint files of runs.
        task: That of who learns from them.

    Raises:
        RecipeError: as :func:`open_checkpoints`; and where a split of the task has the name of another one of theirs,
            which they may have been trained on.
    """
    models = []
    for run, file in map(_locate, map(Path, paths)):
        other = open_task(run)
        _check_alike((Path(task.recipe.name), task), (run.path, other), ["validation", *task.test_splits])
        models.append(other.build_model().eval())
        load_model(file, models[-1])
    return models


def average_run(run: RunDirectory, last: int | None = None) -> Path:
    """Write ``checkpoints/average.safetensors``, the mean of the run's last validated models; returns its path.

    Args:
        run: A run whose recipe says ``training.keep_checkpoints``.
        last: How many to average; None: all that were kept.

    Raises:
        RecipeError: when so many were not kept, a user's file has that name, or another process writes there.
    """
    run.recipe()  # is it a run?
    files = run.step_files()
    count = len(files) if last is None else last
    if not 1 <= count <= len(files):
        wanted = "none to average" if last is None else f"not the last {last}"
        raise RecipeError(f"{run.path} keeps {len(files)} validated models, {wanted}: see training.keep_checkpoints")
    chosen = files[-count:]
    with run.lock():
        if run.folder.is_marked:  # a run of an earlier version has no list of its files
            run.folder.claim([run.name(run.average)])
        save_checkpoint(run.average, average_checkpoints(chosen), {"average_of": [file.name for file in chosen]})
    return run.average


def open_readers(
    paths: Sequence[str | Path], device: str | None = None
) -> tuple[Reader, SequenceModel | Ensemble, torch.device]:
    """What reads new input for checkpoints, and their model, or the ensemble of all; no data of the runs are read.

    Args:
        paths: Run directories, which stand for their best checkpoint, or checkpoint files of runs.
        device: Where the models go; None: where the first recipe says.

    Raises:
        RecipeError: when there is no such run or checkpoint, or the runs read or write in different ways.
    """
    located = [_locate(Path(path)) for path in paths]
    readers = {run.path: _open_reader(run) for run in dict(located)}
    (first, reader), *others = readers.items()
    for path, other in others:
        difference = reader.difference(other)
        if difference:
            raise RecipeError(f"{first} and {path} cannot be mixed: their {difference} differ")
    place = choose_device(device or RunDirectory(first).recipe().device)
    models = []
    for run, file in located:
        tensors, _ = load_checkpoint(file)
        with _fitting(file):
            models.append(readers[run.path].build_model(without_prefix("model", tensors)))
        put_model(tensors, models[-1], file)
    return reader, (models[0] if len(models) == 1 else Ensemble(models)).to(place), place


@contextmanager
def _fitting(file: Path) -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise RecipeError(f"{file} does not fit its recipe: it has no {error.args[0]}") from None


def _open_reader(run: RunDirectory) -> Reader:
    recipe = run.recipe()
    kind = task_class(recipe.task).reader
    if kind is None:
        raise RecipeError(f"{run.path}: runs of the task {recipe.task} read no new input")
    return kind(recipe, run.vocabularies(), run.notes())


def is_run(path: str | Path) -> bool:
    """Whether this names a run, or a checkpoint file."""
    return RunDirectory(path).recipe_file.is_file() or (Path(path).is_file() and Path(path).suffix == ".safetensors")


def run_of(path: str | Path) -> RunDirectory:
    """The run that a run directory or a checkpoint file names."""
    return _locate(Path(path))[0]


def _locate(path: Path) -> tuple[RunDirectory, Path]:
    """The run of a checkpoint file, or a run directory's own best one."""
    if path.is_file():
        return RunDirectory(path.absolute().parent.parent), path
    return RunDirectory(path), RunDirectory(path).best


def open_task(run: RunDirectory, split: str | None = None) -> Task:
    """The task of a run, for a split of it where one is named.

    Raises:
        RecipeError: when the directory holds no run, its data are missing, or the vocabularies or the split are not
            those it was trained with.
    """
    recipe = run.recipe()
    task = task_class(recipe.task)(recipe, run.vocabularies())
    if split is not None:
        check_splits(task, [split])
        run.check_data(task, _parts(task, [split]))
    return task


def check_splits(task: Task, splits: Iterable[str]) -> None:
    """Refuse a split that the data do not have.

    Raises:
        RecipeError: naming those that they do.
    """
    known = ["validation", *task.test_splits]
    for split in splits:
        if split not in known:
            raise RecipeError(f"split must be one of {', '.join(known)}, got {split!r}")


def _parts(task: Task, splits: Iterable[str]) -> list[str]:
    """What of these splits and the vocabularies has a fingerprint."""
    return [*(f"vocabulary.{name}" for name in task.vocabularies), *splits]


def _check_alike(one: tuple[Path, Task], other: tuple[Path, Task], splits: Iterable[str]) -> None:
    """Refuse runs whose models read other inputs, write other tokens, or know other examples by a split's name."""
    tasks = (one[1], other[1])
    mixed = f"{one[0]} and {other[0]} cannot be mixed"
    if type(tasks[0]) is not type(tasks[1]):
        raise RecipeError(f"{mixed}: their tasks differ")
    for name, vocabulary in tasks[0].vocabularies.items():
        if vocabulary.words != tasks[1].vocabularies[name].words:
            raise RecipeError(f"{mixed}: their {name} vocabularies differ")
    (ids, source), (other_ids, other_source) = (next(iter(task.sources("validation", 1))) for task in tasks)
    same = ids == other_ids and len(source) == len(other_source)
    if not (same and all(torch.equal(*pair) for pair in zip(source, other_source, strict=True))):
        raise RecipeError(f"{mixed}: their models read different inputs")
    for split in splits:
        both = all(split in ("validation", *task.test_splits) for task in tasks)
        if both and tasks[0].fingerprint(split) != tasks[1].fingerprint(split):
            raise RecipeError(f"{mixed}: {split} is not the same data in both, so that one may have been trained on it")
