"""Soft targets: what each loss of the paper wants a position to predict, as sparse entries plus a uniform mass.

Source of the equations: Elbayad, Besacier, Verbeek, ACL 2018 (arXiv 1805.05062).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from smoothloss.backends import reference
from smoothloss.backends.common import SparseRows, merge_equal
from smoothloss.ops.similarity_rows import SimilarityMixture
from smoothloss.ops.smoothed_target import smoothed_target
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

    def mixture(self) -> SimilarityMixture:
        """Return it as the operators take it, one row for each position."""
        table = self.table
        factors = (table.unit_vectors, table.log_normalizer, table.has_neighbours, table.counts, table.tau, table.beta)
        return SimilarityMixture(self.tokens.flatten(0, -2), self.weights.flatten(0, -2), *factors)

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the mixture as a dense target ``(..., V)``."""
        dense = reference.mixture(self.mixture().dense_rows(slice(None), dtype))
        return dense.reshape(*self.tokens.shape[:-1], self.table.num_tokens)


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

    def reshape(self, shape: torch.Size) -> SparseTarget:
        """Return the same target with its positions in another shape."""
        uniform = None if self.uniform is None else self.uniform.reshape(shape)
        rows = self.rows
        if rows is not None:
            width = rows.tokens.shape[-1]
            rows = rows._replace(tokens=rows.tokens.reshape(*shape, width), weights=rows.weights.reshape(*shape, width))
        slots = self.indices.shape[-1]
        return SparseTarget(self.indices.reshape(*shape, slots), self.weights.reshape(*shape, slots), uniform, rows)

    def mass(self, num_classes: int) -> Tensor:
        """Return the total mass of each position's target, ``(...)``."""
        filled = (self.indices >= 0) & (self.indices < num_classes)
        total = self.weights.where(filled, 0.0).sum(-1)
        if self.uniform is not None:
            total = total + self.uniform
        if self.rows is not None:
            total = total + self.rows.weights.where(self.rows.tokens >= 0, 0.0).sum(-1)
        return total


def token_target(
    target: Tensor,
    table: SimilarityTable | None = None,
    alpha: float = 0.0,
    *,
    ignore_index: int = -100,
    impl: str = "auto",
) -> SparseTarget:
    """Return ``(1 - alpha) delta(y*_t) + alpha R_{y*_t}`` (Tok, Eq. 13 and 16); without a table ``delta(y*_t)`` (MLE).

    Args:
        target: ``(...)`` ground truth.
        table: similarity rows, or None; its ``tail`` says what becomes of the mass beyond a row's K entries.
        alpha: the paper's alpha, share of the similarity row.
        ignore_index: positions with this target have no mass.
        impl: which implementation builds it.

    Returns:
        Entries ``(..., K + 1)`` and the tails' uniform mass; ``(..., 1)`` without a table, and with an "exact" one,
        whose dense rows stand beside them.
    """
    return _smoothed(target.reshape(1, 1, -1), None, table, alpha, ignore_index, impl).reshape(target.shape)


def lazy_sequence_target(
    target: Tensor,
    samples: Tensor,
    sample_weights: Tensor | None = None,
    *,
    alpha: float,
    table: SimilarityTable | None = None,
    token_alpha: float = 0.0,
    ignore_index: int = -100,
    impl: str = "auto",
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
        impl: which implementation builds it.
    """
    candidates = torch.cat((target.unsqueeze(0), samples.to(target.dtype)))
    weights = _candidate_weights(samples, sample_weights, alpha)
    return _smoothed(candidates, weights, table, token_alpha, ignore_index, impl).reshape(target.shape)


def sequence_target(
    target: Tensor,
    samples: Tensor,
    sample_weights: Tensor | None = None,
    *,
    alpha: float,
    table: SimilarityTable | None = None,
    token_alpha: float = 0.0,
    ignore_index: int = -100,
    impl: str = "auto",
) -> SparseTarget:
    """Return the targets of the exact sequence loss, ``(L + 1, B, T)``: each sequence on its own states (Eq. 9-12, 15).

    The first is ``(1 - alpha) delta(y*_t)``, the others ``alpha omega_l delta(y^l_t)``; with a table every delta is
    smoothed as in `lazy_sequence_target`. Positions where a sequence itself is `ignore_index` have no mass, and where
    lengths agree (Hamming samples) neither do those where the ground truth is.

    Args: as `lazy_sequence_target`; samples may be longer or shorter than the ground truth when padded with
    `ignore_index` to the same width T.
    """
    sequences = torch.cat((target.unsqueeze(0), samples.to(target.dtype)))
    weights = _candidate_weights(samples, sample_weights, alpha).reshape(1, -1)
    candidates = sequences.reshape(1, -1, target.shape[1])
    return _smoothed(candidates, weights, table, token_alpha, ignore_index, impl).reshape(sequences.shape)


def _candidate_weights(samples: Tensor, sample_weights: Tensor | None, alpha: float) -> Tensor:
    """Return ``(L + 1, B)``: ``1 - alpha`` for the ground truth, ``alpha omega_l`` for the samples."""
    count, batch = samples.shape[:2]
    if sample_weights is None:
        omega = torch.full((count, batch), 1 / max(count, 1), device=samples.device)
    else:
        omega = sample_weights.detach().float()
    return torch.cat((omega.new_ones(1, batch) * (1 - alpha), omega * alpha))


def _smoothed(
    candidates: Tensor, weights: Tensor | None, table: SimilarityTable | None, token_alpha: float,
    ignore_index: int, impl: str,
) -> SparseTarget:  # fmt: skip
    """Return the target of candidates ``(J, B, T)`` weighing ``(J, B)``, one row a position."""
    rows = None
    if table is not None and table.tail_mode != "exact" and token_alpha:
        tail = table.tail if table.tail_mode == "uniform" else None
        rows = SparseRows(table.indices, table.weights, tail)
    if torch.compiler.is_compiling() and rows is not None:
        half = smoothed_target(candidates, weights, rows, 0.5, ignore_index, impl)
        indices, entries, uniform = _shared_out(*half, rows.indices.shape[1] + 1, token_alpha)
    else:
        indices, entries, uniform = smoothed_target(candidates, weights, rows, token_alpha, ignore_index, impl)
    if table is None or table.tail_mode != "exact" or not token_alpha:
        return SparseTarget(indices, entries, uniform)
    dense = SimilarityRows(table, indices, entries * token_alpha)
    return SparseTarget(indices, entries * (1 - token_alpha), None, dense)


def _shared_out(
    indices: Tensor, entries: Tensor, uniform: Tensor | None, width: int, token_alpha: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the target of another `token_alpha` than 1/2, with which this one was built.

    A number that is an operator's argument is a constant of compiled code, and another one compiles it again; as a
    factor it is not.
    """
    own = torch.arange(entries.shape[-1], device=entries.device) % width == 0
    ones = torch.ones_like(entries[:1])
    factor = torch.where(own, ones * (2 - 2 * token_alpha), ones * (2 * token_alpha))
    return indices, entries * factor, None if uniform is None else uniform * (2 * token_alpha)


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
