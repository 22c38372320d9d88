"""Dense rows of a similarity table, computed from word vectors when they are needed, block by block.

``R_y(v) = exp(r(v, y) / tau) / sum_v' exp(r(v', y) / tau)``, ``r(v, y) = cos(e_v, e_y) - beta min(f_v/f_y, f_y/f_v)``
(Elbayad et al. 2018, Eq. 13 and 14), with the normaliser known: a row costs one product with all vectors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from smoothloss.backends.common import DenseRows, without_autocast
from smoothloss.backends.native import linear as native_linear
from smoothloss.ops.transforms import is_eager

# One block of scores; several temporaries of this size are alive at a time.
BLOCK_BYTES = 32 << 20
# The elementwise passes over a block of scores go through it in pieces that stay in the cache.
_CACHE_BYTES = 1 << 20
# Stands in for a count of zero: the ratio to any other count is then 0, and to another zero 1.
_SMALLEST_COUNT = 1e-30


class Factors(Protocol):
    """What similarity rows are computed from; a `SimilarityTable` has it, and so has a `SimilarityMixture`."""

    @property
    def unit_vectors(self) -> Tensor:
        """Vectors of length 1, ``(V, d)``."""

    @property
    def log_normalizer(self) -> Tensor:
        """``log sum_v exp(r(v, y) / tau)``, ``(V,)``; inf for tokens without neighbours."""

    @property
    def has_neighbours(self) -> Tensor:
        """``(V,)`` bool; the row of a token without is the Dirac."""

    @property
    def counts(self) -> Tensor | None:
        """Term counts ``(V,)``, or None."""

    @property
    def tau(self) -> float:
        """The temperature."""

    @property
    def beta(self) -> float:
        """Weight of the frequency penalty."""


class SimilarityScorer:
    """Blocks of ``r(v, y) / tau``: rows y as asked for, columns all v, -inf for tokens that are nobody's neighbour."""

    def __init__(self, factors: Factors, dtype: torch.dtype) -> None:
        """Bring the factors to `dtype`, once for all blocks."""
        self.tau, self.beta = factors.tau, factors.beta
        self.vectors = factors.unit_vectors.to(dtype)
        zero = self.vectors.new_zeros(())
        self.column_bias = torch.where(factors.has_neighbours, zero, -math.inf)
        self.log_normalizer, self.has_neighbours = factors.log_normalizer.to(dtype), factors.has_neighbours
        self.counts = None
        if factors.beta > 0 and factors.counts is not None:
            self.counts = factors.counts.clamp(min=_SMALLEST_COUNT).to(dtype)

    def blocks(self, num_rows: int, block_bytes: int | None = None) -> Iterator[tuple[int, int]]:
        """Return the (start, stop) of consecutive blocks whose scores fit the memory budget; one of all in a trace."""
        if not is_eager(self.vectors):  # the number of blocks would make a constant of the number of rows
            return iter([(0, num_rows)])
        size = max(1, (block_bytes or BLOCK_BYTES) // max(1, self.vectors.shape[0] * self.vectors.element_size()))
        return ((start, min(start + size, num_rows)) for start in range(0, num_rows, size))

    def __call__(self, tokens: Tensor, out: Tensor | None = None) -> Tensor:
        """``(U,)`` tokens -> ``(U, V)`` scores."""
        with torch.no_grad(), without_autocast(tokens.device.type):
            scores = torch.addmm(self.column_bias, self.vectors[tokens], self.vectors.T, alpha=1 / self.tau, out=out)
            # The cosine of a token with itself is 1, not what rounding makes of it.
            scores.scatter_(1, tokens.unsqueeze(1), (1 / self.tau + self.column_bias[tokens]).unsqueeze(1))
            if self.counts is not None:
                for start, stop in self.blocks(tokens.shape[0], _CACHE_BYTES):
                    ratio = self.counts[tokens[start:stop]].unsqueeze(1) / self.counts
                    ratio = torch.minimum(ratio, ratio.reciprocal(), out=ratio)
                    scores[start:stop].sub_(ratio, alpha=self.beta / self.tau)
            return scores

    def exact(self, tokens: Tensor, others: Tensor) -> Tensor:
        """Return the scores of ``(U, K)`` others for ``(U,)`` tokens, in float64."""
        vectors = self.vectors[tokens].double()
        scores = torch.bmm(self.vectors[others].double(), vectors[:, :, None])[:, :, 0]
        scores = scores.masked_fill_(tokens[:, None] == others, 1.0).div_(self.tau)
        if self.counts is not None:
            ratio = self.counts[tokens, None].double() / self.counts[others].double()
            scores.sub_(torch.minimum(ratio, ratio.reciprocal()), alpha=self.beta / self.tau)
        return scores

    def rows(self, tokens: Tensor) -> Tensor:
        """Return the normalised rows of ``(U,)`` tokens, ``(U, V)``."""
        result = native_linear.empty(self.vectors, (tokens.shape[0], self.vectors.shape[0]), self.vectors.dtype)
        for start, stop in self.blocks(tokens.shape[0]):
            block, part = tokens[start:stop], result[start:stop]
            self(block, out=part)
            for first, last in self.blocks(stop - start, _CACHE_BYTES):
                part[first:last].sub_(self.log_normalizer[block[first:last]].unsqueeze(1)).exp_()
            # The normaliser of a token without neighbours is inf: zeros everywhere, but 1 at itself.
            own = part.gather(1, block.unsqueeze(1)).squeeze(1).where(self.has_neighbours[block], 1.0)
            part.scatter_(1, block.unsqueeze(1), own.unsqueeze(1))
        return result


class SimilarityMixture(NamedTuple):
    """Dense targets ``q_n = sum_j weights[n, j] R[tokens[n, j]]``, kept as what R is computed from.

    Attributes:
        tokens: ``(N, J)`` row numbers; negative for none.
        weights: ``(N, J)``.
        unit_vectors, log_normalizer, has_neighbours, counts, tau, beta: see `Factors`.
    """

    tokens: Tensor
    weights: Tensor
    unit_vectors: Tensor
    log_normalizer: Tensor
    has_neighbours: Tensor
    counts: Tensor | None
    tau: float
    beta: float

    @property
    def row_bytes(self) -> int:
        """Bytes that the dense rows of one position take at most."""
        return self.tokens.shape[1] * self.unit_vectors.shape[0] * 4

    def dense_rows(self, part: slice, dtype: torch.dtype) -> DenseRows:
        """Return the mixture of the positions `part`, over the rows of their distinct tokens."""
        tokens, weights = self.tokens[part], self.weights[part]
        used, place = distinct(tokens.clamp(0, self.unit_vectors.shape[0] - 1), self.unit_vectors.shape[0])
        rows = place.to(torch.int32).masked_fill_(tokens < 0, -1)
        return DenseRows(SimilarityScorer(self, dtype).rows(used), rows, weights.to(dtype).contiguous())

    def has_the_factors_of(self, other: SimilarityMixture) -> bool:
        """Return whether both are mixtures of one table's rows."""
        return self.unit_vectors is other.unit_vectors and (self.tau, self.beta) == (other.tau, other.beta)

    def pack(self) -> tuple[list[Tensor], list[float]]:
        """Return the mixture as an operator takes it: tensors and numbers."""
        tensors = [self.tokens, self.weights, self.unit_vectors, self.log_normalizer, self.has_neighbours]
        return [*tensors, *(() if self.counts is None else (self.counts,))], [self.tau, self.beta]

    @classmethod
    def unpack(cls, tensors: list[Tensor], numbers: list[float]) -> SimilarityMixture:
        """Return what `pack` packed."""
        counts = tensors[5] if len(tensors) > 5 else None
        tokens, weights, unit_vectors, log_normalizer, has_neighbours = tensors[:5]
        return cls(tokens, weights, unit_vectors, log_normalizer, has_neighbours, counts, *numbers)


def distinct(tokens: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Return the distinct tokens, and where among them each of `tokens` is.

    On an accelerator without asking how many there are, which would wait for it: as many as there can be, the first
    ones used.
    """
    tokens = tokens.long()
    if tokens.device.type == "cpu" and is_eager(tokens):
        return tokens.unique(return_inverse=True)
    present = tokens.new_zeros(num_tokens).index_fill_(0, tokens.flatten(), 1)
    rank = present.cumsum(0) - 1
    place = rank[tokens]
    count = tokens.numel()
    # A size that an exported graph leaves open has no smaller of two: that would bound it.
    used = tokens.new_zeros(min(count, num_tokens) if type(count) is int else count)
    # Equal places get equal tokens, whichever is written last.
    return used.scatter_(0, place.flatten(), tokens.flatten()), place
