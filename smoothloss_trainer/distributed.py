"""Several processes that train one model, started by ``accelerate launch`` or ``torchrun``."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Literal

import torch
from torch import Tensor, nn

from smoothloss_trainer.devices import choose_device
from smoothloss_trainer.errors import RecipeError, RunError

# The others wait while the first one reads the data, learns vectors and scores.
_TIMEOUT = timedelta(hours=12)
# What gloo, NCCL and the store say when another process is gone.
_GONE = ("onnection closed", "onnection reset", "onnection refused", "roken pipe", "imed out", "Socket", "NCCL", "gloo")
_SAID = "smoothloss/said"


@contextmanager
def _others() -> Iterator[None]:
    """Tell of others that are gone, or were never there, in one line."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if isinstance(error, RecipeError | RunError):
            raise
        raise _unreachable(error) from None


@contextmanager
def others_may_end() -> Iterator[None]:
    """Tell in one line, and how to go on, when others end while they are needed; other errors stay what they are."""
    try:
        yield
    except RuntimeError as error:
        gone = isinstance(error, _Unreachable)
        if not gone and (isinstance(error, RunError) or not any(words in str(error) for words in _GONE)):
            raise
        lost = error if gone else _unreachable(error)
        raise RunError(f"{lost}; --resume goes on from the last checkpoint") from None


class _Unreachable(RunError):
    """Another process does not answer."""


def _unreachable(error: Exception) -> _Unreachable:
    # Without the place in gloo's sources before it, and the advice behind it.
    reason = re.sub(r"^\s*(\[\S*\]\s*)?", "", " ".join(str(error).split())).split(". ")[0]
    return _Unreachable(f"the other processes of this training cannot be reached: {reason[:200]}")


def speaks_first() -> bool:
    """Whether no other process of this training has told yet what ended it: one line is enough for all.

    The launcher's store is asked, which outlives any process. Where it is gone with the process that held it, the
    first one of the others speaks.
    """
    group = torch.distributed
    if not (group.is_available() and group.is_initialized()):
        return True
    try:
        return int(group.distributed_c10d._get_default_store().add(_SAID, 1)) == 1
    except (RuntimeError, ValueError):
        return group.get_rank() <= 1


def _world_size() -> int:
    """How many processes were started, as their starter says."""
    text = os.environ.get("WORLD_SIZE") or "1"
    if not text.isdecimal() or not int(text):
        raise RecipeError(f"the environment variable WORLD_SIZE must be a whole number from 1 on, got {text!r}")
    return int(text)


def _shards_on_cpus() -> bool:
    """Whether torch's FSDP2 runs on CPUs: that of 2.6 asks their streams for what they have not."""
    return hasattr(torch.cpu.Stream, "record_event")


class Processes:
    """The processes of a training run, of which this is one.

    All of them run the same steps on different batches, and share the work of validation; the first one alone writes
    files. Devices, process groups, DDP and accumulation are accelerate's; FSDP2 is torch's own ``fully_shard``, since
    accelerate does not apply it on CPUs.

    Args:
        device: The recipe's. With several processes each gets a GPU of its own, unless it is ``cpu``.
        parallel: ``ddp`` or ``fsdp``: what :meth:`prepare` does.

    Attributes:
        count: How many there are.
        rank: Which one this is, counted from 0.
        device: Where this one trains.

    Raises:
        RecipeError: when several were started and the device is one GPU, or ``WORLD_SIZE`` is no number.
        RunError: when several were started and accelerate is not installed, or the others cannot be reached.
    """

    def __init__(self, device: str, parallel: Literal["ddp", "fsdp"] = "ddp") -> None:
        self.count, self.rank, self.parallel = 1, 0, parallel
        self._accelerator: Any = None
        if _world_size() > 1:
            self._join(device)
        else:
            self.device = choose_device(device)

    def _join(self, device: str) -> None:
        try:
            from accelerate import Accelerator, InitProcessGroupKwargs
        except ImportError:
            raise RunError('several processes need accelerate: pip install "smoothloss[train]"') from None
        if device not in ("auto", "cpu", "cuda"):
            raise RecipeError(f"device must be auto, cpu or cuda for several processes, got {device!r}")
        if self.parallel == "fsdp" and choose_device(device).type == "cpu" and not _shards_on_cpus():
            raise RecipeError(f"training.parallel fsdp on CPUs needs a newer torch, got {torch.__version__}; ddp runs")
        with _others():
            handlers = [InitProcessGroupKwargs(timeout=_TIMEOUT)]
            on_cpu = choose_device(device).type == "cpu"
            self._accelerator = state = Accelerator(cpu=on_cpu, mixed_precision="no", kwargs_handlers=handlers)
        self.count, self.rank, self.device = state.num_processes, state.process_index, state.device

    def prepare(self, module: nn.Module) -> nn.Module:
        """The module as all processes train it: averages of gradients over them come of its backward."""
        if self.count == 1:
            return module
        with _others():
            if self.parallel == "fsdp":
                from torch.distributed.device_mesh import init_device_mesh
                from torch.distributed.fsdp import fully_shard

                fully_shard(module, mesh=init_device_mesh(self.device.type, (self.count,)))  # in place
                return module
            prepared: nn.Module = self._accelerator.prepare(module)
            return prepared

    def accumulating(self, module: nn.Module) -> AbstractContextManager[None]:
        """In it, a backward of a prepared module adds to the gradients of this process and tells no other."""
        if self.count == 1:
            return nullcontext()
        if self.parallel == "fsdp":
            return _without_sync(module)
        context: AbstractContextManager[None] = self._accelerator.no_sync(module)
        return context

    @contextmanager
    def gathered(self, module: nn.Module) -> Iterator[None]:
        """Have all weights of a prepared module here, for work outside its ``forward``."""
        if self.count == 1 or self.parallel == "ddp":
            yield
            return
        module.unshard()  # type: ignore[operator]
        try:
            yield
        finally:
            module.reshard()  # type: ignore[operator]

    def whole(self, tensor: Tensor) -> Tensor:
        """A weight or moment that is spread over the processes in one; all of them have to ask."""
        return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

    def spread(self, whole: Tensor, like: Tensor) -> Tensor:
        """The inverse of :meth:`whole`: spread as another tensor of this shape is."""
        if not hasattr(like, "full_tensor") or whole.shape != like.shape:
            return whole
        from torch.distributed.tensor import distribute_tensor

        own = whole.to(self.device)
        return distribute_tensor(own, like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]

    def takes(self, number: int) -> bool:
        """Whether the work of this number is this process's."""
        return number % self.count == self.rank

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files."""
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

    def gather(self, value: Any) -> list[Any]:
        """What each process gives, by its number: plain values that JSON holds."""
        if self.count == 1:
            return [value]
        text = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=self.device)
        sizes = self.sum([float(len(text)) * (rank == self.rank) for rank in range(self.count)])
        rows = [torch.empty(int(max(sizes)), dtype=torch.uint8, device=self.device) for _ in sizes]
        with _others():
            torch.distributed.all_gather(rows, nn.functional.pad(text, (0, int(max(sizes)) - len(text))))
        return [json.loads(bytes(row[: int(size)].tolist())) for row, size in zip(rows, sizes, strict=True)]

    def close(self) -> None:
        """Leave the others, once all are done."""
        if self.count > 1:
            self.wait()
            self._accelerator.end_training()


@contextmanager
def _without_sync(module: nn.Module) -> Iterator[None]:
    module.set_requires_gradient_sync(False)  # type: ignore[operator]
    try:
        yield
    finally:
        module.set_requires_gradient_sync(True)  # type: ignore[operator]


ALONE = Processes.__new__(Processes)
ALONE.count, ALONE.rank, ALONE.parallel, ALONE._accelerator = 1, 0, "ddp", None
