"""Models of runs, ready to evaluate: one, an ensemble of several, or the average of a run's last checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from smoothloss.trainer.checkpoint import (
    average_checkpoints,
    load_checkpoint,
    load_model,
    put_model,
    save_checkpoint,
    without_prefix,
)
from smoothloss.trainer.config import Recipe
from smoothloss.trainer.decoding import Ensemble
from smoothloss.trainer.errors import RecipeError
from smoothloss.trainer.evaluation import choose_device
from smoothloss.trainer.run import RunDirectory
from smoothloss.trainer.tasks import Reader, SequenceModel, Task, task_class


def open_checkpoints(
    paths: Sequence[str | Path], device: str | None = None
) -> tuple[Recipe, Task, SequenceModel | Ensemble, torch.device]:
    """Recipe and task of the first checkpoint, and its model, or the ensemble of all of them.

    Args:
        paths: Run directories, which stand for their best checkpoint, or checkpoint files of runs.
        device: Where the models go; None: where the first recipe says.

    Raises:
        RecipeError: when there is no such run or checkpoint, or the models do not read and write the same tokens.
    """
    located = [_locate(Path(path)) for path in paths]
    tasks = {run.path: open_task(run) for run in dict(located)}
    (first, task), *others = tasks.items()
    for other in others:
        _check_alike((first, task), other)
    recipe = RunDirectory(first).recipe()
    place = choose_device(device or recipe.device)
    models = []
    for run, file in located:
        models.append(tasks[run.path].build_model())
        load_model(file, models[-1])
    return recipe, task, (models[0] if len(models) == 1 else Ensemble(models)).to(place), place


def average_run(run: RunDirectory, last: int | None = None) -> Path:
    """Write ``checkpoints/average.safetensors``: the mean of the run's last validated models; returns its path.

    Args:
        run: A run whose recipe says ``training.keep_checkpoints``.
        last: How many to average; None: all that were kept.

    Raises:
        RecipeError: when so many were not kept.
    """
    run.recipe()  # is it a run?
    files = run.step_files()
    count = len(files) if last is None else last
    if not 1 <= count <= len(files):
        wanted = "none to average" if last is None else f"not the last {last}"
        raise RecipeError(f"{run.path} keeps {len(files)} validated models, {wanted}: see training.keep_checkpoints")
    chosen = files[-count:]
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


def open_task(run: RunDirectory) -> Task:
    """The task of a run.

    Raises:
        RecipeError: when the directory holds no run, or its data are missing.
    """
    recipe = run.recipe()
    return task_class(recipe.task)(recipe, run.vocabularies())


def _check_alike(one: tuple[Path, Task], other: tuple[Path, Task]) -> None:
    """Refuse runs whose models read other inputs or write other tokens."""
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
