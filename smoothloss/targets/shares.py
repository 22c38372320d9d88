"""How classes of which log-probabilities are known share what they have, at a temperature."""

from __future__ import annotations

import torch
from torch import Tensor

from smoothloss._validation import check_number


def check_temperature(value: object) -> float:
    """Return a temperature T as a float. Beyond these bounds ``1 / T`` and ``T^2`` leave nothing of a float32."""
    return check_number(value, "temperature", 1e-10, 1e10)


def shares(log_probs: Tensor, filled: Tensor | None) -> Tensor:
    """Return ``log_probs`` of the filled slots, all of them for None, normalised to be a distribution over them.

    -inf in the others. Where all of them are -inf they share alike: the limit of equal ones that fall.
    """
    known = log_probs if filled is None else log_probs.where(filled, -torch.inf)
    if not known.shape[-1]:
        return known
    alike = known.detach().amax(-1, keepdim=True) == -torch.inf
    if filled is None:
        return known.masked_fill(alike, 0.0).log_softmax(-1)
    is_empty = filled.sum(-1, keepdim=True) == 0  # in a third of the time of any(-1)
    return known.masked_fill(alike & (filled | is_empty), 0.0).log_softmax(-1).masked_fill(~filled, -torch.inf)
