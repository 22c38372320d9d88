"""What a target is made of besides its own entries: rows of a table, sparse or dense, that many positions share."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


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
