"""Training batches in their order, prepared here or by worker processes while the step before is computed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Dataset

from smoothloss_trainer.errors import RecipeError, RunError
from smoothloss_trainer.tasks import Batch, Task

Examples = Sequence[int]


class _Batches(Dataset[Batch | Exception]):
    """What is wrong with an example is handed over like a batch: torch would add the worker's traceback to it."""

    def __init__(self, task: Task, plan: Sequence[Examples]) -> None:
        self.task, self.plan = task, plan

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: int) -> Batch | Exception:
        try:
            return self.task.train_batch(self.plan[number])
        except (RecipeError, RunError, OSError) as error:
            return error


class Feed:
    """Gives batches. A batch depends on its examples alone, so that workers change nothing but who prepares it.

    Args:
        task: The data.
        workers: Processes that prepare batches; None: as :func:`default_workers` says.
        device: Where the batches are used.
    """

    def __init__(self, task: Task, workers: int | None, device: torch.device) -> None:
        self.task = task
        self.workers = default_workers(device) if workers is None else workers
        self._coming: Iterator[Batch | Exception] | None = None
        self._plan: list[Examples] = []

    def begin(self, plan: Sequence[Examples]) -> None:
        """Have the batches of these examples prepared, to be taken in this order."""
        self.end()
        if self.workers:
            self._plan = list(plan)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "This DataLoader will create")  # more than cores: as was asked
                # Python 3.12 warns of any fork beside threads; a worker needs none of them.
                warnings.filterwarnings("ignore", r"This process .* is multi-threaded", DeprecationWarning)
                loader = DataLoader(_Batches(self.task, list(plan)), batch_size=None, num_workers=self.workers)
                self._coming = iter(loader)

    def take(self, examples: Examples) -> Batch:
        """The batch of these examples.

        Raises:
            RunError: when a worker has ended, because memory ran out, say.
        """
        if self._coming is None:
            return self.task.train_batch(examples)
        assert self._plan.pop(0) == examples, "batches are taken in the order of the plan"
        try:
            batch = next(self._coming)
        except RuntimeError as error:
            raise RunError(f"a worker that prepares batches has ended: {str(error).splitlines()[0][:200]}") from None
        if isinstance(batch, Exception):
            raise batch
        return batch

    def end(self) -> None:
        """Prepare no more, and end the workers."""
        self._coming, self._plan = None, []


def default_workers(device: torch.device) -> int:
    """One for a GPU that would wait for Python, none where training and preparing share the cores."""
    return int(device.type == "cuda" and (os.cpu_count() or 1) > 1)
