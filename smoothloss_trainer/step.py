"""What a training step computes: the gradients of its batches, then an update of the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from smoothloss_trainer import graphs
from smoothloss_trainer.stopwatch import Stopwatch
from smoothloss_trainer.tasks import Batch, State


class Step:
    """A step, computed as it comes.

    Args:
        objective: Model and loss.
        optimizer: Of the model's weights.
        clip: Largest gradient norm; 0 does not clip.
        generator: What the loss draws from.
        loss_sum: Where losses are summed, on the device.
        stopwatch: Times its parts.
    """

    def __init__(
        self,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        clip: float,
        generator: torch.Generator,
        loss_sum: Tensor,
        stopwatch: Stopwatch,
    ) -> None:
        self.objective, self.optimizer, self.clip = objective, optimizer, clip
        self.generator, self.loss_sum, self.stopwatch = generator, loss_sum, stopwatch
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def place(self, batch: Batch, dtype: torch.dtype) -> Batch:
        """The batch where :meth:`add_gradient` wants it, its numbers that are no integers in ``dtype``."""
        return batch.to(self.loss_sum.device, dtype)

    def begin(self) -> None:
        """Forget the gradients of the step before."""
        self.optimizer.zero_grad(set_to_none=True)

    def add_gradient(self, batch: Batch, share: float, count: int) -> None:
        """Add ``share`` times the gradient of a batch's loss per token, and the loss of ``count`` tokens to the sum."""
        self._add(batch, share, count)

    def update(self) -> None:
        """Let the optimizer change the weights."""
        self._update()

    def _add(self, batch: Batch, share: float | Tensor, count: int | Tensor) -> None:
        loss = self.objective(batch, self.generator)
        with self.stopwatch("backward"):
            (loss * share).backward()
        self.loss_sum += loss.detach() * count

    def _update(self) -> None:
        if self.clip:
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()


class RecordedStep(Step):
    """A step that is recorded and replayed, see :mod:`smoothloss_trainer.graphs`; the arguments are those of Step.

    Raises:
        RecipeError: when the device can record nothing.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        device = self.loss_sum.device
        recorder = graphs.recorder(device, [self.generator])
        for parameter in self.parameters:  # where every recording adds to it
            parameter.grad = torch.zeros_like(parameter)
        self._gradient = graphs.Replayed(self._add_parts, recorder, device, self.stopwatch)
        self._descent = graphs.Replayed(self._descend, recorder, device)

    def place(self, batch: Batch, dtype: torch.dtype) -> Batch:
        """The batch on the CPU: it is copied from there to where a recording reads it."""
        return batch.to(torch.device("cpu"), dtype)

    def begin(self) -> None:
        """As Step's; the update before has done it, in one recording with itself."""

    def add_gradient(self, batch: Batch, share: float, count: int) -> None:
        """As Step's; of the batch, the shape decides what is replayed."""
        numbers = (torch.tensor(float(number), dtype=torch.float64) for number in (share, count))
        self._gradient(batch.parts, *numbers)

    def update(self) -> None:
        """As Step's."""
        self._descent()

    def _descend(self) -> None:
        self._update()
        self.optimizer.zero_grad(set_to_none=False)

    def _add_parts(self, parts: tuple[State, ...], share: Tensor, count: Tensor) -> None:
        self._add(Batch(*parts), share, count)
