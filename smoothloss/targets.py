"""Soft targets: what each loss of the paper wants a position to predict, as sparse entries plus a uniform mass.

Source of the equations: Elbayad, Besacier, Verbeek, ACL 2018 (arXiv 1805.05062).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from smoothloss.ops.reference import merge_equal, mixture
from smoothloss.ops.rows import DenseRows
from smoothloss.similarity import SimilarityTable


class SimilarityRows(NamedTuple):
    """A mixture of dense similarity rows, ``q_n = sum_j weights[n, j] R[tokens[n, j]]``, kept as its factors.

    Attributes:
        table: a table with ``tail="exact"``.
        tokens: ``(..., J)`` row numbers, -1 for none.
        weights: ``(..., J)``.
    """

    table: SimilarityTable
    tokens: Tensor
    weights: Tensor

    def dense_rows(self, dtype: torch.dtype = torch.float32) -> DenseRows:
        """Return the mixture over the rows of the *distinct* tokens, with one row of logits for each position."""
        used, place = self.tokens.clamp(min=0).unique(return_inverse=True)
        rows = place.masked_fill(self.tokens < 0, -1).flatten(0, -2).int()
        return DenseRows(self.table.rows(used, dtype=dtype), rows, self.weights.flatten(0, -2).to(dtype).contiguous())

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the mixture as a dense target ``(..., V)``."""
        return mixture(self.dense_rows(dtype)).reshape(*self.tokens.shape[:-1], self.table.num_tokens)


class SparseTarget(NamedTuple):
    """A soft target for every position.

    Attributes:
        indices: ``(..., S)`` classes; negative: an empty slot. An index may repeat, its weights add up.
        weights: ``(..., S)``.
        uniform: ``(...)`` mass spread evenly over all classes, or None.
        rows: dense similarity rows on top, or None.
    """

    indices: Tensor
    weights: Tensor
    uniform: Tensor | None = None
    rows: SimilarityRows | None = None

    def mass(self, num_classes: int) -> Tensor:
        """Return the total mass of each position's target, ``(...)``."""
        filled = (self.indices >= 0) & (self.indices < num_classes)
        total = self.weights.where(filled, 0.0).sum(-1)
        if self.uniform is not None:
            total = total + self.uniform
        if self.rows is not None:
            total = total + self.rows.weights.where(self.rows.tokens >= 0, 0.0).sum(-1)
        return total


def hard_target(target: Tensor, weight: float | Tensor = 1.0, *, ignore_index: int = -100) -> SparseTarget:
    """Return ``weight * delta(y)`` (MLE), one entry a position, none where ``target == ignore_index``.

    Args:
        target: ``(...)`` class numbers.
        weight: a number, or a tensor that broadcasts to ``(...)``.
        ignore_index: positions with this target have no mass.
    """
    indices = target.masked_fill(target == ignore_index, -1).unsqueeze(-1)
    weights = torch.as_tensor(weight, dtype=torch.float32, device=target.device).expand(target.shape).unsqueeze(-1)
    return SparseTarget(indices, weights.where(indices >= 0, 0.0))


def smooth_tokens(target: SparseTarget, table: SimilarityTable, alpha: float) -> SparseTarget:
    """Replace every ``delta(y)`` of `target` by ``(1 - alpha) delta(y) + alpha R_y`` (Eq. 13, 16 and 17).

    Args:
        target: entries ``(..., S)`` without uniform mass.
        table: similarity rows; its ``tail`` says what becomes of the mass beyond a row's K entries.
        alpha: share of the similarity row, in [0, 1].

    Returns:
        Entries ``(..., S (K + 1))`` and the tails' uniform mass; with an "exact" table, entries ``(..., S)`` and the
        dense rows.
    """
    if alpha == 0.0:
        return target
    indices, weights = target.indices, target.weights
    if table.tail_mode == "exact":
        rows = SimilarityRows(table, indices, weights * alpha)
        return SparseTarget(indices, weights * (1 - alpha), None, rows)
    # An empty slot reads row 0 and an index out of range the last one: neither has a weight that counts, and the
    # operators report the latter.
    row = indices.clamp(0, table.num_tokens - 1)
    filled = indices >= 0
    share = alpha * weights
    neighbours = table.indices[row].where(filled.unsqueeze(-1), -1)
    neighbour_weights = share.unsqueeze(-1) * table.weights[row]
    uniform = None
    if table.tail_mode == "uniform":
        uniform = (share * table.tail[row]).where(filled, 0.0).sum(-1)
    return SparseTarget(
        torch.cat((indices, neighbours.flatten(-2).to(indices.dtype)), -1),
        torch.cat((weights * (1 - alpha), neighbour_weights.flatten(-2)), -1),
        uniform,
    )


def token_target(
    target: Tensor, table: SimilarityTable | None = None, alpha: float = 0.0, *, ignore_index: int = -100
) -> SparseTarget:
    """Return ``(1 - alpha) delta(y*_t) + alpha R_{y*_t}`` (Tok, Eq. 13 and 16); without a table ``delta(y*_t)`` (MLE).

    Args:
        target: ``(...)`` ground truth.
        table: similarity rows, or None.
        alpha: the paper's alpha, share of the similarity row.
        ignore_index: positions with this target have no mass.
    """
    hard = hard_target(target, ignore_index=ignore_index)
    return hard if table is None else smooth_tokens(hard, table, alpha)


def lazy_sequence_target(
    target: Tensor,
    samples: Tensor,
    sample_weights: Tensor | None = None,
    *,
    alpha: float,
    table: SimilarityTable | None = None,
    token_alpha: float = 0.0,
    ignore_index: int = -100,
) -> SparseTarget:
    """Return ``(1 - alpha) delta(y*_t) + alpha sum_l omega_l delta(y^l_t)``, all for the one forward on y* (Eq. 19).

    With a table every delta is smoothed in turn: ``(1 - token_alpha) delta(y) + token_alpha R_y`` (Eq. 17). Equal
    tokens are merged first; most samples repeat the ground truth in most positions.

    Args:
        target: ``(B, T)`` ground truth y*.
        samples: ``(L, B, T)`` sampled sequences; disregarded where `target` is `ignore_index`.
        sample_weights: ``(L, B)`` importance weights omega, or None for 1/L.
        alpha: share of the samples.
        table: similarity rows, or None.
        token_alpha: the paper's alpha_2.
        ignore_index: positions with this target have no mass.
    """
    omega = _sample_weights(samples, sample_weights)
    candidates = torch.cat((target.unsqueeze(0), samples.to(target.dtype))).movedim(0, -1)
    head = omega.new_full((1, omega.shape[1]), 1 - alpha)
    weights = torch.cat((head, alpha * omega)).t().unsqueeze(1).expand(candidates.shape)
    ignored = (target == ignore_index).unsqueeze(-1) | (candidates == ignore_index)
    merged = merge_equal(candidates.masked_fill(ignored, -1), weights)
    sparse = SparseTarget(*merged)
    return sparse if table is None else smooth_tokens(sparse, table, token_alpha)


def sequence_target(
    target: Tensor,
    samples: Tensor,
    sample_weights: Tensor | None = None,
    *,
    alpha: float,
    table: SimilarityTable | None = None,
    token_alpha: float = 0.0,
    ignore_index: int = -100,
) -> SparseTarget:
    """Return the targets of the exact sequence loss, ``(L + 1, B, T)``: each sequence on its own states (Eq. 9-12, 15).

    The first is ``(1 - alpha) delta(y*_t)``, the others ``alpha omega_l delta(y^l_t)``; with a table every delta is
    smoothed as in `lazy_sequence_target`. Positions where a sequence itself is `ignore_index` have no mass, and where
    lengths agree (Hamming samples) neither do those where the ground truth is.

    Args: as `lazy_sequence_target`; samples may be longer or shorter than the ground truth when padded with
    `ignore_index` to the same width T.
    """
    omega = _sample_weights(samples, sample_weights)
    sequences = torch.cat((target.unsqueeze(0), samples.to(target.dtype)))
    weights = torch.cat((omega.new_full((1, omega.shape[1]), 1 - alpha), alpha * omega))
    sparse = hard_target(sequences, weights.unsqueeze(-1), ignore_index=ignore_index)
    return sparse if table is None else smooth_tokens(sparse, table, token_alpha)


def _sample_weights(samples: Tensor, sample_weights: Tensor | None) -> Tensor:
    if sample_weights is not None:
        return sample_weights.detach().float()
    count, batch = samples.shape[:2]
    return torch.full((count, batch), 1.0 / max(count, 1), device=samples.device)


def negative_entropy(target: SparseTarget, num_classes: int, label_smoothing: float = 0.0) -> Tensor:
    """Return ``sum_v q_v log q_v`` of every position's target q, ``(...)``: what turns cross-entropy into KL.

    Args:
        target: the target before label smoothing.
        num_classes: V.
        label_smoothing: eps, applied to the target first.
    """
    mass = target.mass(num_classes)
    indices = target.indices.where(target.indices < num_classes, -1)
    indices, weights = merge_equal(indices, target.weights)
    uniform = torch.zeros_like(mass) if target.uniform is None else target.uniform
    floor = ((1 - label_smoothing) * uniform + label_smoothing * mass).unsqueeze(-1) / num_classes
    entries = (1 - label_smoothing) * weights + floor
    if target.rows is not None:
        dense = (1 - label_smoothing) * target.rows.dense(entries.dtype) + floor
        slot = indices.where(indices >= 0, 0).long()
        dense = dense.scatter_add(-1, slot, ((1 - label_smoothing) * weights).where(indices >= 0, 0.0))
        return torch.xlogy(dense, dense).sum(-1)
    filled = indices >= 0
    inside = torch.xlogy(entries, entries).where(filled, 0.0).sum(-1)
    rest = num_classes - filled.sum(-1)
    return inside + rest * torch.xlogy(floor, floor).squeeze(-1)
