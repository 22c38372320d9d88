"""The pool of a token's neighbours: substitutes drawn from the similarity row of the token they replace."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from smoothloss.ops.similarity_rows import SimilarityScorer, distinct
from smoothloss.sampling.alias import alias_table
from smoothloss.sampling.pools import Pool, Substitutes, check_vocabulary, select
from smoothloss.similarity import SimilarityTable

# Keeps a number in [0, 1] times n, rounded, below n. Nothing else is as small in float64 and yet above its rounding.
_ALMOST_ONE = 1 - 2**-50
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
        self._rows: dict[torch.device, _KeptRows | _DenseRows] = {}

    def substitutes(self, target: Tensor, replaceable: Tensor, references: Tensor | None) -> Substitutes:
        """The neighbours of each token."""
        size = self.table.num_tokens
        if target.device.type == "cpu" and (target >= size).any():
            offender = int(target[target >= size][0])
            raise IndexError(f"target: got token {offender}, expected token < {size}, the size of the table")
        if target.device not in self._rows:
            table = self.table.to(target.device)
            allowed = ~self.is_excluded(torch.arange(size, device=target.device)[None])[0]
            dense = table.tail_mode == "exact"
            self._rows[target.device] = _dense_rows(table, allowed) if dense else _kept_rows(table, allowed)
        rows = self._rows[target.device]
        known, tokens = target < size, target.to(torch.int64).clamp(0, size - 1)
        if isinstance(rows, _DenseRows):
            return _DenseSubstitutes(rows, tokens, known)
        return _KeptSubstitutes(rows, tokens, known)

    def __repr__(self) -> str:
        return f"SimilarPool(tau={self.table.tau:g}, tail_mode={self.table.tail_mode!r}, exclude={self.exclude})"


class _KeptRows(NamedTuple):
    """Rows of K entries and an even tail, laid out by token.

    The allowed tokens, ascending, are numbered by rank. A row divides them into W = 2 K + 3 segments of equally likely
    tokens: those before its first entry, this entry, those between it and the second, and so on, the token itself
    counted as an entry of weight 0.

    Attributes:
        num_substitutes: ``(V,)`` int64, the substitutes of each token.
        threshold: ``(V, W)`` float64, the alias table of the segments.
        other: ``(V, W)`` int32, the other segment of each slot, less the number of the slot.
        first: ``(V, W)`` int32, the first rank of each segment.
        length: ``(V, W)`` float64, the tokens of each segment, less what a share in [0, 1] of it may be rounded up.
        log_ratio: ``(V, W)`` float64, the logarithm of their number times the probability of a token of the segment.
        allowed: ``(V + 1,)`` int64, the tokens by rank, then no tokens.
    """

    num_substitutes: Tensor
    threshold: Tensor
    other: Tensor
    first: Tensor
    length: Tensor
    log_ratio: Tensor
    allowed: Tensor


def _kept_rows(table: SimilarityTable, allowed: Tensor) -> _KeptRows:
    """Lay out the rows of a table without dense ones; ``allowed (V,)`` bool."""
    size, total = table.num_tokens, allowed.sum()
    own = torch.arange(size, device=table.device)[:, None]
    tokens = torch.cat([table.indices.masked_fill(table.indices == own, -1).to(torch.int64), own], dim=1)
    even = table.tail.double()[:, None] / size
    weight = torch.nn.functional.pad(table.weights.double() + even, (0, 1))
    usable = (tokens >= 0) & allowed[tokens.clamp(min=0)]
    # By rank; what is not usable comes last, behind all tokens.
    rank, order = torch.where(usable, (allowed.cumsum(0) - 1)[tokens.clamp(min=0)], total).sort(dim=1)
    weight = weight.where(usable, 0.0).gather(1, order)
    # A gap, an entry, a gap, ..., an entry, a gap.
    start = torch.stack([rank, rank + 1], dim=2).flatten(1)
    start = torch.nn.functional.pad(torch.cat([start, total.expand(size, 1)], dim=1).clamp(max=total), (1, 0))
    length = start.diff(dim=1)
    share = torch.nn.functional.pad(torch.stack([even.expand_as(weight), weight], dim=2).flatten(1), (0, 1))
    share[:, -1:] = even
    mass = share * length
    count = length.where(share > 0, 0).sum(dim=1)
    threshold, other = alias_table(mass)
    return _KeptRows(
        num_substitutes=count,
        threshold=threshold,
        other=(other - torch.arange(other.shape[1], device=table.device)).to(torch.int32),
        first=start[:, :-1].to(torch.int32),
        length=length.double() * _ALMOST_ONE,
        log_ratio=share.log() + (count / mass.sum(dim=1)).log()[:, None],
        allowed=torch.nn.functional.pad(torch.where(allowed, own[:, 0], size).sort().values, (0, 1)),
    )


class _KeptSubstitutes(Substitutes):
    """Draws from rows of K entries and an even tail."""

    def __init__(self, rows: _KeptRows, tokens: Tensor, known: Tensor) -> None:
        self.rows, self.tokens = rows, tokens
        self.count = select(rows.num_substitutes, tokens) * known

    def draw(self, number: Tensor) -> tuple[Tensor, Tensor]:
        rows, width = self.rows, self.rows.threshold.shape[1]
        number = number * (width * _ALMOST_ONE / self.count.clamp(min=1).double())
        slot = number.to(torch.int64)
        # What is behind the point of the number decides between the slot's two outcomes, and among their tokens.
        share = number.sub_(slot)
        segment = slot.add_(self.tokens * width)
        threshold = select(rows.threshold, segment)
        is_other = share >= threshold
        segment += select(rows.other, segment) * is_other
        share = torch.where(is_other, (share - threshold) / (1 - threshold), share / threshold)
        rank = share.mul_(select(rows.length, segment)).to(torch.int32).add_(select(rows.first, segment))
        return select(rows.allowed, rank), select(rows.log_ratio, segment)


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

    def draw(self, number: Tensor) -> tuple[Tensor, Tensor]:
        share = number / self.count.clamp(min=1)
        scorer = SimilarityScorer(self.rows.table, torch.float32)
        used, place = distinct(self.tokens, self.rows.table.num_tokens)
        drawn = torch.zeros_like(share, dtype=torch.int64)
        log_prob = torch.zeros_like(share)
        on_cpu = number.device.type == "cpu"
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
