"""What the implementations share: the options of a row, the parts of a target, the dtype that sums are made in."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class RowOptions(NamedTuple):
    """What the loss of one row depends on besides its logits and its target.

    Attributes:
        label_smoothing: share eps of the target's mass that is spread evenly over all ``V`` classes.
        entropy: gamma, the weight of the entropy bonus ``- gamma H(p)``.
        z_loss: weight of ``lse ** 2``.
        logit_scale: the logits are multiplied by it first (the inverse of a temperature).
        softcap: ``z <- softcap * tanh(z / softcap)`` after the scaling; 0 means none.
    """

    label_smoothing: float = 0.0
    entropy: float = 0.0
    z_loss: float = 0.0
    logit_scale: float = 1.0
    softcap: float = 0.0


class SparseRows(NamedTuple):
    """Sparse rows of a similarity table, one for each token.

    Attributes:
        indices: ``(V, K)`` int32, contiguous; negative for an empty slot.
        weights: ``(V, K)`` float32, contiguous.
        tail: ``(V,)`` float32, the mass of each row that is spread evenly over all classes, or None.
    """

    indices: Tensor
    weights: Tensor
    tail: Tensor | None


class DenseRows(NamedTuple):
    """Distributions over all classes that rows of logits mix: ``q_n += sum_j weights[n, j] values[rows[n, j]]``.

    Each row of `values` sums to one, so that a position's mass grows by ``sum_j weights[n, j]`` over its filled slots.

    Attributes:
        values: ``(U, V)`` accumulator dtype, contiguous.
        rows: ``(N, J)`` int32, contiguous; negative or not below U: an empty slot. A number may repeat.
        weights: ``(N, J)`` accumulator dtype, contiguous.
    """

    values: Tensor
    rows: Tensor
    weights: Tensor


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that losses of logits of `dtype` are computed in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def target_mass(indices: Tensor, weights: Tensor, uniform: Tensor | None, num_classes: int) -> Tensor:
    """Return ``m = sum_s w_s + u`` over the filled slots, ``(N,)``."""
    filled = (indices >= 0) & (indices < num_classes)
    mass = weights.where(filled, 0.0).sum(-1)
    return mass if uniform is None else mass + uniform


_MERGE_BLOCK = 32


def merge_equal(indices: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Give the first slot of each distinct index the weight of all its repeats, and empty the others.

    The target stays what it is; what follows has fewer entries to expand. No sort, no atomics, no host sync:
    slots are compared block by block, so the result is the same bit for bit in every run.

    Args:
        indices: ``(..., S)``, negative for an empty slot.
        weights: ``(..., S)``.

    Returns:
        The merged ``(indices, weights)`` of the same shapes; emptied slots hold (-1, 0).
    """
    slots = indices.shape[-1]
    weights = weights.where(indices >= 0, 0.0)
    position = torch.arange(slots, device=indices.device)
    total, first = [], []
    for block in position.split(_MERGE_BLOCK):
        equal = indices[..., block, None] == indices[..., None, :]
        total.append(torch.where(equal, weights[..., None, :], 0.0).sum(-1))
        first.append(~(equal & (position < block[:, None])).any(-1))
    if not total:
        return indices, weights
    keep = torch.cat(first, -1) & (indices >= 0)
    return indices.where(keep, -1), torch.cat(total, -1).where(keep, 0.0)
