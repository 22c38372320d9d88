"""What a model predicts, as a sparse target: its likeliest classes, and the rest of its mass on all classes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from smoothloss import targets
from smoothloss.functional import token_statistics
from smoothloss.targets import Target


class Prediction(NamedTuple):
    """The likeliest classes at some positions.

    Args:
        indices: ``(..., S)``, in any order.
        log_prob: Of these classes.
    """

    indices: Tensor
    log_prob: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, logits: Tensor, classes: int) -> Prediction:
        """The so many likeliest classes of logits ``(..., V)``."""
        found = logits.topk(min(classes, logits.shape[-1]), sorted=False).indices
        return cls(found, token_statistics(logits, found).log_prob)

    def twice(self) -> Prediction:
        """The same for a batch that has all its rows a second time after them: ``(..., B, T, S)``."""
        return Prediction(*(torch.cat((part, part), -3) for part in self))

    def exchanged(self) -> Prediction:
        """Of such a batch, for each row what there is of its other."""
        return Prediction(*(part.unflatten(-3, (2, -1)).flip(-4).flatten(-4, -3) for part in self))

    def of_mass(self, mass: Tensor) -> Target:
        """As a target with so much mass ``(...)`` at each position; what other classes have is spread evenly."""
        predicted = targets.top_k(self.indices, self.log_prob)
        uniform = predicted.uniform
        assert uniform is not None
        return targets.entries(predicted.indices, predicted.weights * mass.unsqueeze(-1), uniform * mass)
