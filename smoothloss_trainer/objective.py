"""Model and loss as one module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smoothloss_trainer.losses import TrainingLoss
from smoothloss_trainer.tasks import Batch, SequenceModel


class Objective(nn.Module):
    """A batch's loss in one ``forward``, so that whatever wraps it (DDP, FSDP2) sees every use of the weights.

    Args:
        model: The model.
        loss: What is trained.
        autocast: Whether the forward pass runs in bfloat16.
    """

    def __init__(self, model: SequenceModel, loss: TrainingLoss, *, autocast: bool = False) -> None:
        super().__init__()
        self.model, self.loss, self.autocast = model, loss, autocast

    def forward(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean loss per target token; what is drawn comes from ``generator``."""
        with torch.autocast(batch.target.device.type, torch.bfloat16, self.autocast):
            return self.loss(self.model, batch, generator)
