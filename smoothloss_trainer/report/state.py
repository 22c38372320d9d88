"""How far a run has come, told from its last checkpoint; and what its model holds."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from smoothloss._tensor_file import open_tensors
from smoothloss_trainer.folder import LOCK
from smoothloss_trainer.run import RunDirectory

MOST = 1e30  # what is larger is not a result but damage


@dataclass(frozen=True)
class State:
    """How far a run has come.

    Args:
        finished: Whether training is over; None where no checkpoint says so.
        epoch: The epoch it is in, or ended with.
        step: Steps done.
        seconds: Time spent training.
        last_sign: When it last wrote something.
        running: Whether a process is at work in its directory.
    """

    finished: bool | None
    epoch: int
    step: int
    seconds: float
    last_sign: datetime | None
    running: bool

    @property
    def word(self) -> str:
        """The state in a word or two."""
        if self.finished:
            return "finished"
        if self.running:
            return "running"
        return "interrupted" if self.finished is False else "state unknown"

    def in_words(self, epochs: int, split: str, *, scored: bool) -> str:
        """Such as "interrupted in epoch 2 of 4, step 30, last written 2018-07-15 12:00 UTC; no scores on test"."""
        at = f"epoch {self.epoch} of {epochs}" if self.epoch <= epochs else f"epoch {self.epoch}"
        since = f", last written {self.last_sign:%Y-%m-%d %H:%M} UTC" if self.last_sign else ""
        where = f"in {at}, step {self.step:,}{since}" if self.step else f"before the first step{since}"
        if self.finished:
            text = f"finished: {at}"
        elif self.finished is None and not self.running:
            text = f"state unknown, no checkpoint that can be read: {where}"
        else:
            text = f"{self.word} {where}"
        if not scored:
            return f"{text}; no scores on {split}"
        return text if self.finished is not False else f"{text}; its scores on {split} are of an earlier state"


def read_state(run: RunDirectory, metrics: Sequence[Mapping[str, Any]]) -> State:
    """The state of a run; without a checkpoint, as far as its metrics tell."""
    files = [run.last, run.metrics_file, run.recipe_file]
    times = [file.stat().st_mtime for file in files if file.is_file()]
    last_sign = datetime.fromtimestamp(max(times), timezone.utc) if times else None
    step = max((line["step"] for line in metrics), default=0)
    epoch = max((line["epoch"] for line in metrics), default=0)
    seconds = max((line["seconds"] for line in metrics if is_number(line.get("seconds"))), default=0.0)
    progress, running = _progress(run.last), is_in_use(run.path)
    if progress is None:
        return State(None, epoch, step, seconds, last_sign, running)
    finished = bool(progress.get("finished", False))
    epoch = progress["epoch"] if finished and not progress.get("position") else progress["epoch"] + 1
    # Metrics may be younger than the checkpoint.
    return State(finished, epoch, max(step, progress["step"]), max(seconds, progress["seconds"]), last_sign, running)


def is_in_use(folder: Path) -> bool:
    """Whether another process holds the lock of a run's directory."""
    if not (folder / LOCK).is_file():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a file that may not be opened
        return False


def _progress(checkpoint: Path) -> dict[str, Any] | None:
    try:
        with open_tensors(checkpoint) as file:
            progress = json.loads((file.metadata() or {})["state"])["progress"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError):
        return None
    if not isinstance(progress, dict) or not all(is_number(progress.get(key)) for key in ("epoch", "step", "seconds")):
        return None
    return progress


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -MOST < value < MOST


def count_parameters(run: RunDirectory) -> int | None:
    """Numbers in the model of a run's checkpoint, matrices that two layers share counted once; None without one."""
    for checkpoint in (run.best, run.last):
        try:
            return _count(checkpoint)
        except (OSError, SafetensorError, KeyError, ValueError):
            continue
    return None


def _count(checkpoint: Path) -> int:
    with open_tensors(checkpoint) as file:
        names = [name for name in file.keys() if name.startswith("model.")]  # noqa: SIM118 (not a mapping)
        if not names:
            raise KeyError("model")
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        distinct: dict[Any, int] = {}
        for name, shape in shapes.items():
            alike = len(shape) > 1 and [*shapes.values()].count(shape) > 1  # those may be one tensor under two names
            mark = hashlib.sha256(file.get_tensor(name).float().numpy().tobytes()).digest() if alike else name
            distinct[mark] = math.prod(shape)
    return sum(distinct.values())
