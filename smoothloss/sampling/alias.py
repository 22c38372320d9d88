"""The alias method: draws from many discrete distributions in constant time each (Walker 1977, Vose 1991)."""

from __future__ import annotations

import torch
from torch import Tensor


def alias_table(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Share out each row's weights to W slots of one size, each slot of at most two outcomes.

    Slot w is outcome w with probability ``threshold[w]``, else outcome ``other[w]``. A slot drawn uniformly gives each
    outcome in proportion to its weight, and never one of weight 0.

    Args:
        weight: ``(V, W)`` float64, >= 0.

    Returns:
        ``threshold (V, W)`` float64 and ``other (V, W)`` int64. They mean nothing in a row of zeros.
    """
    size, width = weight.shape
    total = weight.sum(dim=1, keepdim=True)
    # In units of a slot; the smallest is filled up by the largest, whose rest goes on as one of the small.
    value, order = (weight * (width / total.where(total > 0, 1.0))).sort(dim=1)
    threshold, other = torch.ones_like(value), torch.arange(width, device=weight.device).repeat(size, 1)
    small = torch.zeros((size, 1), dtype=torch.int64, device=weight.device)
    large = small + (width - 1)
    current, part, rest = small, value[:, :1], value[:, -1:]
    for _ in range(width - 1):
        threshold.scatter_(1, current, part)
        other.scatter_(1, current, large)
        rest = rest - (1 - part)
        used_up = rest < 1
        small = small + ~used_up
        current, part = torch.where(used_up, large, small), torch.where(used_up, rest, value.gather(1, small))
        large = (large - used_up.to(torch.int64)).clamp(min=0)
        rest = torch.where(used_up, value.gather(1, large), rest)
    return torch.empty_like(threshold).scatter_(1, order, threshold), torch.empty_like(other).scatter_(
        1, order, order.gather(1, other)
    )
