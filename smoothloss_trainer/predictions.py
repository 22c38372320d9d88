"""What a model predicts, as a sparse target: its likeliest classes, and the rest of its mass on all classes."""

from __future__ import annotations

import torch
from torch import Tensor

from smoothloss import targets
from smoothloss.functional import token_statistics
from smoothloss.targets import Target


@torch.no_grad()
def likeliest(logits: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """The so many likeliest classes ``(..., S)`` of logits ``(..., V)``, in any order, and their log-probabilities."""
    found = logits.topk(min(classes, logits.shape[-1]), sorted=False).indices
    return found, token_statistics(logits, found).log_prob


def of_mass(indices: Tensor, log_prob: Tensor, mass: Tensor) -> Target:
    """What :func:`likeliest` gave, as a target with so much mass ``(...)`` at each position."""
    predicted = targets.top_k(indices, log_prob)
    uniform = predicted.uniform
    assert uniform is not None
    return targets.entries(predicted.indices, predicted.weights * mass.unsqueeze(-1), uniform * mass)
