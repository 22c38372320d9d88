"""What training says of itself: ``metrics.jsonl``, and TensorBoard where it is asked for."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from smoothloss_trainer.documents import flat
from smoothloss_trainer.errors import RunError
from smoothloss_trainer.run import RunDirectory

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter


class MetricsLog:
    """Appends lines to a run's ``metrics.jsonl``, and their numbers to its ``tensorboard`` directory.

    Args:
        run: The run.
        tensorboard: Whether to write for TensorBoard too.

    Raises:
        RunError: when TensorBoard is asked for and not installed.
    """

    def __init__(self, run: RunDirectory, *, tensorboard: bool = False) -> None:
        self.run, self.lines = run, 0
        self._wants_board = tensorboard
        self._board: SummaryWriter | None = None
        if tensorboard:
            _board_class()

    def write(self, step: int, epoch: int, values: dict[str, Any]) -> None:
        """Write a line: ``{"step": ..., "epoch": ..., **values}``. Values that are dictionaries become tags a/b."""
        with self.run.metrics_file.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps({'step': step, 'epoch': epoch, **values})}\n")
        self.lines += 1
        if self._wants_board:
            board = self._open(step)
            for name, value in flat(values, "/").items():
                board.add_scalar(name, value, step)
            board.flush()

    def sync(self) -> None:
        """Bring the lines to disk: a checkpoint is to be written that counts them."""
        if self.lines:
            with self.run.metrics_file.open("ab") as file:
                os.fsync(file.fileno())

    def restore(self, lines: int, step: int) -> None:
        """Go back to a checkpoint made at a step, after so many lines."""
        self.lines = lines
        self.run.cut_metrics(lines)
        if self._wants_board:
            self._open(step)

    def close(self) -> None:
        """Close what is open."""
        if self._board is not None:
            self._board.close()
            self._board = None

    def _open(self, step: int) -> SummaryWriter:
        if self._board is None:
            # What an interrupted run wrote beyond this step is not shown. The suffix tells the run's files from others.
            suffix = f".{self.run.folder.facts().get('id', 'run')}"
            folder = str(self.run.path / "tensorboard")
            self._board = _board_class()(folder, purge_step=step + 1, filename_suffix=suffix)
        return self._board


def _board_class() -> type[SummaryWriter]:
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError:
        raise RunError('training.tensorboard needs TensorBoard: pip install "smoothloss[tensorboard]"') from None
    return SummaryWriter
