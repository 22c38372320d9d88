"""The definition of importance weights, in torch: on any device, and with gradients."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from smoothloss.sampling.importance import Weighing


def unavailable(weighing: Weighing) -> str | None:
    """Return None: it weighs all."""
    return None


def weigh(weighing: Weighing) -> Tensor:
    """Return ``softmax(min(scores, clip) / tau - log_prob)`` over the samples, or over the batch and times B."""
    weights = log_weights(weighing).softmax(dim=0)
    return weights.view(weighing.scores.shape) * weighing.scores.shape[1] if weighing.of_batch else weights


def log_weights(weighing: Weighing) -> Tensor:
    """Return the logarithms of the weights less the largest, ``(L, B)``, or ``(L B, 1)`` for the batch as one."""
    scores, log_prob = weighing.scores.to(weighing.dtype), weighing.log_prob.to(weighing.dtype)
    if weighing.clip != math.inf:
        scores = scores.clamp(max=weighing.clip)
    if weighing.of_batch:
        scores, log_prob = scores.reshape(-1, 1), log_prob.reshape(-1, 1)
    # Differences are divided by tau, not the scores themselves, which could round or overflow.
    rewards = _below_largest(scores) / weighing.tau
    # What no sample of q is, and has no reward either, has no weight.
    return _below_largest(torch.where(rewards == -math.inf, rewards, rewards - log_prob))


def _below_largest(values: Tensor) -> Tensor:
    """Return ``values - values.amax(0)``, where an infinite value is 0 below itself."""
    if values.numel() == 0:
        return values
    largest = values.amax(dim=0, keepdim=True)
    return torch.where(values == largest, torch.zeros_like(values), values - largest)
