"""Several processes that train one model, started by ``accelerate launch`` or ``torchrun``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from smoothloss_trainer.devices import choose_device
from smoothloss_trainer.errors import RecipeError, RunError

# The others wait while the first one validates.
_TIMEOUT = timedelta(hours=12)


@contextmanager
def _others() -> Iterator[None]:
    """Tell of others that are gone, or were never there, in one line."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if isinstance(error, RecipeError | RunError):
            raise
        raise RunError(f"the other processes of this training cannot be reached: {str(error)[:200]}") from None


def _world_size() -> int:
    """How many processes were started, as their starter says."""
    text = os.environ.get("WORLD_SIZE") or "1"
    if not text.isdecimal() or not int(text):
        raise RecipeError(f"the environment variable WORLD_SIZE must be a whole number from 1 on, got {text!r}")
    return int(text)


class Processes:
    """The processes of a training run, of which this is one.

    All of them run the same steps on different batches; the first one alone writes files and validates. Whatever they
    tell each other is a sum over processes.

    Args:
        device: The recipe's. With several processes each gets a GPU of its own, unless it is ``cpu``.

    Attributes:
        count: How many there are.
        rank: Which one this is, counted from 0.
        device: Where this one trains.

    Raises:
        RecipeError: when several were started and the device is one GPU, or ``WORLD_SIZE`` is no number.
        RunError: when several were started and accelerate is not installed, or the others cannot be reached.
    """

    def __init__(self, device: str) -> None:
        self.count, self.rank = 1, 0
        if _world_size() > 1:
            self._join(device)
        else:
            self.device = choose_device(device)

    def _join(self, device: str) -> None:
        try:
            from accelerate import PartialState
        except ImportError:
            raise RunError('several processes need accelerate: pip install "smoothloss[train]"') from None
        if device not in ("auto", "cpu", "cuda"):
            raise RecipeError(f"device must be auto, cpu or cuda for several processes, got {device!r}")
        with _others():
            state = PartialState(cpu=choose_device(device).type == "cpu", timeout=_TIMEOUT)
        self.count, self.rank, self.device = state.num_processes, state.process_index, state.device

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and validates."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            with _others():
                torch.distributed.barrier()

    def first(self, work: Callable[[], Any]) -> bool:
        """Do ``work`` in the first process while the others wait; whether it gave something true, told to all.

        Raises:
            SystemExit: in the others, without a word, when it failed in the first, which raises what went wrong.
        """
        done, result = False, False
        try:
            result = bool(work()) if self.is_main else False
            done = True
        finally:
            failed, agreed = self.of_main([not done, result])
        if failed:
            raise SystemExit(1)
        return bool(agreed)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each number summed over the processes."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        with _others():
            torch.distributed.all_reduce(total)
        return total.tolist()

    def of_main(self, values: Sequence[float]) -> list[float]:
        """The numbers of the first process."""
        return self.sum([value if self.is_main else 0.0 for value in values])

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Sum the gradients over the processes, in one message; a missing one counts as zero."""
        if self.count == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        with _others():
            torch.distributed.all_reduce(flat)
        for parameter, total in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = total.view_as(parameter)

    def gather(self, tensor: Tensor) -> Tensor:
        """``stack([tensor of process 0, tensor of process 1, ...])`` of small integers, all of one shape."""
        if self.count == 1:
            return tensor[None]
        rows = torch.zeros(self.count, *tensor.shape, dtype=torch.int64, device=self.device)
        rows[self.rank] = tensor
        with _others():
            torch.distributed.all_reduce(rows)
        return rows.to(tensor.device, tensor.dtype)

    def close(self) -> None:
        """Leave the others, once all are done."""
        if self.count > 1:
            self.wait()
            torch.distributed.destroy_process_group()
