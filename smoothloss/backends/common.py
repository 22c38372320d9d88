"""What the implementations share: the options of a row, the parts of a target, the dtype that sums are made in."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from smoothloss import _graphs as graphs
from smoothloss.row_options import RowOptions as RowOptions


class TableRows(NamedTuple):
    """Sparse rows of a similarity table, one for each token.

    Attributes:
        indices: ``(V, K)`` int32, contiguous; negative for an empty slot.
        weights: ``(V, K)`` float32, contiguous.
        tail: ``(V,)`` float32, the mass of each row that is spread evenly over all classes, or None.
    """

    indices: Tensor
    weights: Tensor
    tail: Tensor | None


class Candidates(NamedTuple):
    """Sequences whose tokens share the mass of each position: the ground truth, and samples around it.

    Attributes:
        target: ``(B, T)`` int32 or int64, contiguous.
        samples: ``(L, B, T)`` of the same dtype, contiguous, or None.
        target_weights: ``(B,)`` float32, or None: 1.
        sample_weights: ``(L, B)`` float32 or float64, contiguous, or None: 1 / L.
        alpha: factor of the samples' weights, ``1 - alpha`` that of the ground truth's.
        ignore_index: marks positions, and candidates of a position, without a target.
    """

    target: Tensor
    samples: Tensor | None = None
    target_weights: Tensor | None = None
    sample_weights: Tensor | None = None
    alpha: float = 0.0
    ignore_index: int = -100

    def per_position(self) -> int:
        """Number of candidates of a position."""
        return 1 if self.samples is None else 1 + self.samples.shape[0]


class DenseRows(NamedTuple):
    """Distributions over all classes that rows of logits mix: ``q_n += sum_j weights[n, j] values[rows[n, j]]``.

    A position's mass grows by ``sum_j weights[n, j]`` over its filled slots, so that each row of `values` sums to one.

    Attributes:
        values: ``(U, V)`` accumulator dtype, contiguous.
        rows: ``(N, J)`` int32, contiguous; negative or not below U: an empty slot. A number may repeat.
        weights: ``(N, J)`` accumulator dtype, contiguous.
    """

    values: Tensor
    rows: Tensor
    weights: Tensor


class RowTarget(NamedTuple):
    """What the rows of a call are to predict, as the implementations take it.

    Attributes:
        indices: ``(N, S)`` int32 or int64, contiguous; negative: an empty slot. An index may repeat.
        weights: ``(N, S)`` accumulator dtype, contiguous; or None: the one slot of each row weighs 1.
        uniform: ``(N,)`` accumulator dtype, contiguous, mass that lies evenly on all classes; or None.
        dense: distributions on top, or None.
        ignore_index: given for class numbers: the one that marks a row to ignore, any other negative is an error.
        prior: ``(V,)`` accumulator dtype, contiguous: what the uniform mass, that of smoothed labels included, is
            spread by; None: evenly.
    """

    indices: Tensor
    weights: Tensor | None = None
    uniform: Tensor | None = None
    dense: DenseRows | None = None
    ignore_index: int | None = None
    prior: Tensor | None = None


class Forward(NamedTuple):
    """What a forward returns, in the accumulator dtype.

    Attributes:
        loss: ``(N,)``, or of no dimension when it is reduced.
        statistics: ``(N, 3)``: the largest logit of the row, ``sum exp(z - largest)``, and the entropy (0 unless it is
            asked for). Apart, because ``lse = largest + log(sum)`` rounds; (0, 1, 0) in rows without mass. None where
            autograd sees through the forward.
        mass: ``(N,)``; None when it is reduced.
        scale: the factor that a reduction gives the gradient; None when it is not reduced.
    """

    loss: Tensor
    statistics: Tensor | None
    mass: Tensor | None
    scale: Tensor | None


class TokenStatistics(NamedTuple):
    """What `smoothloss.functional.token_statistics` says of each row of logits; of N rows here.

    Attributes:
        log_prob: ``(..., S)``, ``log p`` of the classes asked for; 0 in empty slots.
        log_rest: ``(...)``, ``log sum p`` over all other classes, summed over these; -inf where there is none.
        entropy: ``(...)``, ``-sum p log p``.
        logsumexp: ``(...)``.
        argmax: ``(...)`` int64, the first class of the largest logit.
    """

    log_prob: Tensor
    log_rest: Tensor
    entropy: Tensor
    logsumexp: Tensor
    argmax: Tensor


class StatisticsGradients(NamedTuple):
    """What comes back for `TokenStatistics`, in the accumulator dtype, contiguous; None: unused.

    Attributes:
        log_prob: ``(N, S)``.
        log_rest: ``(N,)``.
        entropy: ``(N,)``.
        logsumexp: ``(N,)``.
    """

    log_prob: Tensor | None
    log_rest: Tensor | None
    entropy: Tensor | None
    logsumexp: Tensor | None


# Numbers of a row that the forward of the token statistics keeps for its backward.
SAVED_STATISTICS = 5
# And that of the Jensen-Shannon divergence.
SAVED_JENSEN_SHANNON = 3


class OutOfRange(IndexError):
    """An index that names no class."""


Record = TypeVar("Record", bound=tuple[Any, ...])


def replaced(kind: type[Record], record: Record, **changes: Any) -> Record:
    """Return ``record._replace(**changes)`` of a NamedTuple, as torch 2.6 compiles it too."""
    fields: tuple[str, ...] = kind._fields  # type: ignore[attr-defined]
    return kind(*[changes.get(name, value) for name, value in zip(fields, record, strict=False)])


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that losses of logits of `dtype` are computed in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@graphs.constant
def has_autocast(device_type: str) -> bool:
    """Return whether a device has autocast; torch 2.6 does not compile the question."""
    return torch.amp.is_autocast_available(device_type)


def without_autocast(device_type: str) -> contextlib.AbstractContextManager[object]:
    """Return the context in which autocast casts nothing, on devices that have it."""
    if not has_autocast(device_type):
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)


def slots_of(target: RowTarget) -> tuple[Tensor, Tensor]:
    """Return indices ``(N, S)``, -1 in empty slots of labels, and weights likewise."""
    indices = target.indices if target.indices.dim() == 2 else target.indices.unsqueeze(-1)
    if target.ignore_index is not None:
        indices = indices.masked_fill(indices == target.ignore_index, -1)
    if target.weights is not None:
        return indices, target.weights
    dtype = torch.float32 if target.uniform is None else target.uniform.dtype
    return indices, torch.ones(indices.shape, dtype=dtype, device=indices.device)


def mass_of(target: RowTarget, num_classes: int) -> Tensor:
    """Return the mass of each row over its filled slots, ``(N,)``."""
    indices, weights = slots_of(target)
    mass = _filled_sum(indices, weights, num_classes)
    if target.uniform is not None:
        mass = mass + target.uniform
    if target.dense is not None:
        mass = mass + _filled_sum(target.dense.rows, target.dense.weights, target.dense.values.shape[0])
    return mass


def _filled_sum(indices: Tensor, weights: Tensor, size: int) -> Tensor:
    filled = (indices >= 0) & (indices < size)
    return weights.where(filled, 0.0).sum(-1)


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
        equal = indices[..., block].unsqueeze(-1) == indices.unsqueeze(-2)
        total.append(torch.where(equal, weights.unsqueeze(-2), 0.0).sum(-1))
        first.append(~(equal & (position < block.unsqueeze(-1))).any(-1))
    if not total:
        return indices, weights
    keep = torch.cat(first, -1) & (indices >= 0)
    return indices.where(keep, -1), torch.cat(total, -1).where(keep, 0.0)
