"""The pool of a token's neighbours: substitutes drawn from the similarity row of the token they replace."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from smoothloss.ops.similarity_rows import SimilarityScorer, distinct
from smoothloss.ops.transforms import is_eager
from smoothloss.sampling.philox import Numbers
from smoothloss.sampling.pools import KernelPool, Pool, Substitutes, check_vocabulary, kept, wide_enough
from smoothloss.sampling.segments import SegmentRows, SegmentSubstitutes
from smoothloss.similarity import SimilarityTable

# Smaller than a block of scores usually is: the running sums of one are twice as large, and stay in the cache.
_CPU_BLOCK_BYTES = 8 << 20


class SimilarPool(Pool):
    r"""The neighbours of the token that is replaced: ``P(y' | y) = R_y(y') / sum_{v allowed} R_y(v)``.

    Allowed is every token but y itself and the excluded ones. ``R_y`` is the row as the table has it:

    * ``tail_mode="renormalize"``: its K entries; there are as many substitutes as allowed entries.
    * ``"uniform"``: its K entries, each with its exact weight, and every other token of the vocabulary with its even
      share of the tail, tokens without a vector included: the table gives them that share too. Exclude those that
      must not be drawn.
    * ``"exact"``: the dense row over all tokens that have a vector, computed for the distinct tokens of the batch block
      by block, at the cost of one ``(U, d) x (d, V)`` product.

    A token without a vector, or excluded from the table, has no neighbours and is never replaced.

    Args:
        table: The similarity table; it is copied to the device that is sampled on.
        exclude: Token ids that are never drawn and never replaced.

    Raises:
        TypeError: ``table`` is no SimilarityTable.
        ValueError: An excluded token is not in the table.
        IndexError: At the call, on the CPU: a token of the target is not in the table. On CUDA it has no substitutes.
    """

    def __init__(self, table: SimilarityTable, exclude: Iterable[int] = ()) -> None:
        super().__init__(exclude)
        if not isinstance(table, SimilarityTable):
            raise TypeError(f"table: got {type(table).__name__}, expected a smoothloss.SimilarityTable")
        check_vocabulary(self.exclude, table.num_tokens)
        self.table = table
        self._rows: dict[torch.device, SegmentRows | _DenseRows] = {}

    def substitutes(self, target: Tensor, replaceable: Tensor, references: Tensor | None) -> Substitutes:
        """The neighbours of each token."""
        size = self.table.num_tokens
        target = target.to(torch.int64)  # a comparison with a number that int16 does not hold wraps around
        if target.is_cpu and is_eager(target):
            unknown = replaceable & (target >= size)
            if unknown.any():
                offender = int(target[unknown][0])
                raise IndexError(f"target: got token {offender}, expected token < {size}, the size of the table")
        rows = self._rows_on(target.device)
        known, tokens = target < size, target.clamp(0, size - 1)
        if isinstance(rows, _DenseRows):
            return _DenseSubstitutes(rows, tokens, known)
        return SegmentSubstitutes(rows, tokens, known)

    def _rows_on(self, device: torch.device) -> SegmentRows | _DenseRows:
        if device not in self._rows:
            # Segments are laid out on the CPU whatever the device: sums in another order would give other samples.
            on_device = self.table.tail_mode == "exact" or self.table.device.type == "meta"
            place = device if on_device else torch.device("cpu")
            table = self.table.to(place)
            allowed = ~self.is_excluded(torch.arange(table.num_tokens, device=place)[None])[0]
            is_dense = self.table.tail_mode == "exact"
            rows = _dense_rows(table, allowed) if is_dense else SegmentRows.of(table, allowed).to(device)
            return kept(self._rows, device, rows, allowed)
        return self._rows[device]

    def token_dtype(self, target: torch.dtype, references: torch.dtype | None) -> torch.dtype:
        """Wide enough for the largest token."""
        return wide_enough(target, self.table.num_tokens - 1)

    def kernel_pool(self, device: torch.device, references: Tensor | None) -> KernelPool | None:
        """The rows of segments; the kernels know no dense rows."""
        rows = self._rows_on(device) if self.table.tail_mode != "exact" else None
        if not isinstance(rows, SegmentRows):
            return None
        return KernelPool(
            kind=3, by_rank=rows.by_rank.data_ptr(), num_substitutes=rows.num_substitutes.data_ptr(),
            segments=rows.segments.data_ptr(), num_tokens=self.table.num_tokens, width=rows.segments.shape[1],
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"SimilarPool(tau={self.table.tau:g}, tail_mode={self.table.tail_mode!r}, exclude={self.exclude})"


class _DenseRows(NamedTuple):
    """A table with dense rows, which tokens ``(V,)`` may be drawn, and a bias that leaves out the others."""

    table: SimilarityTable
    allowed: Tensor
    bias: Tensor


def _dense_rows(table: SimilarityTable, allowed: Tensor) -> _DenseRows:
    return _DenseRows(table, allowed & table.has_neighbours, torch.where(allowed, 0.0, -torch.inf))


class _DenseSubstitutes(Substitutes):
    """Draws from dense rows, which are computed for the distinct tokens of the batch, block by block."""

    def __init__(self, rows: _DenseRows, tokens: Tensor, known: Tensor) -> None:
        self.rows, self.tokens = rows, tokens
        count = rows.allowed.sum() - rows.allowed[tokens].to(torch.int64)
        self.count = count * (known & rows.table.has_neighbours[tokens])

    def draw(self, numbers: Numbers) -> tuple[Tensor, Tensor]:
        share = numbers.fraction()
        scorer = SimilarityScorer(self.rows.table, torch.float32)
        used, place = distinct(self.tokens, self.rows.table.num_tokens)
        drawn = torch.zeros_like(share, dtype=torch.int64)
        log_prob = torch.zeros_like(share)
        on_cpu = share.device.type == "cpu"
        for start, stop in scorer.blocks(used.shape[0], _CPU_BLOCK_BYTES if on_cpu else None):
            scores = scorer(used[start:stop]).add_(self.rows.bias)
            scores.scatter_(1, used[start:stop, None], -torch.inf)
            inside = (place >= start) & (place < stop)
            found, value = _draw_from(scores, (place - start).where(inside, 0), share)
            drawn, log_prob = torch.where(inside, found, drawn), torch.where(inside, value, log_prob)
        return drawn, log_prob + self.count.double().log()


def _draw_from(scores: Tensor, row: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Draw from ``softmax(scores)``.

    Args:
        scores: ``(U, V)``.
        row: ``(B, T)``, the row to draw from.
        share: ``(L, B, T)`` uniform in [0, 1).

    Returns:
        Columns ``(L, B, T)`` and their log-probabilities in float64.
    """
    width = scores.shape[1]
    scores = scores.sub_(scores.amax(dim=1, keepdim=True))
    cumulative = scores.exp().cumsum(dim=1, dtype=torch.float64)
    mass = cumulative[:, -1].take(row)
    # The first column whose cumulative mass is above share * mass, by bisection: each draw looks at few of them.
    first, threshold = row * width, share * mass
    column = torch.zeros_like(share, dtype=torch.int64)
    for step in (1 << bit for bit in reversed(range(width.bit_length()))):
        probe = (column + (step - 1)).clamp_(max=width - 1)
        below = (column + step < width) & (cumulative.take(probe + first) <= threshold)
        column += below * step
    return column, scores.take(column + first).double() - mass.log()
