"""Similarity rows laid out for drawing: K entries and an even tail as an alias table of the vocabulary's segments."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from smoothloss.sampling.alias import alias_table
from smoothloss.sampling.philox import COIN_BITS, Numbers, Purpose
from smoothloss.sampling.pools import Substitutes
from smoothloss.sampling.sets import select
from smoothloss.similarity import SimilarityTable


class SegmentRows(NamedTuple):
    """Rows of K entries and an even tail.

    The tokens that may be drawn, ascending, are numbered by rank. A row divides them into W = 2 K + 3 segments of
    equally likely tokens: those before its first entry, this entry, those between it and the second, and so on, the
    token itself counted as an entry of weight 0. An alias table shares the segments out to W slots.

    Attributes:
        num_substitutes: ``(V,)`` int64, the substitutes of each token.
        segments: ``(V, W, 4)`` int64, what a draw needs of a segment side by side: the coins of a slot below which it
            is its own segment's; two int32 in the place of a number, whose it is beyond, less the number of the slot,
            and the first rank of the segment; the tokens of the segment; in the place of a number a float64, the
            logarithm of the number of substitutes times the probability of a token of the segment.
        by_rank: ``(V + 1,)`` int64, the tokens by rank, then no tokens.
    """

    num_substitutes: Tensor
    segments: Tensor
    by_rank: Tensor

    @classmethod
    def of(cls, table: SimilarityTable, allowed: Tensor) -> SegmentRows:
        """Lay out the rows of a table; ``allowed (V,)`` bool are the tokens that may be drawn."""
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
        share = torch.cat([torch.stack([even.expand_as(weight), weight], dim=2).flatten(1), even], dim=1)
        mass = share * length
        count = length.where(share > 0, 0).sum(dim=1)
        threshold, other = alias_table(mass)
        other = other - torch.arange(other.shape[1], device=table.device)
        log_ratio = share.log() + (count / mass.sum(dim=1)).log()[:, None]
        return cls(
            num_substitutes=count,
            segments=_packed(threshold, other, start[:, :-1], length, log_ratio),
            by_rank=torch.nn.functional.pad(torch.where(allowed, own[:, 0], size).sort().values, (0, 1)),
        )

    def at(self, segment: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Threshold, other, first rank, length and log ratio of segments, counted through all rows."""
        found = self.segments.view(-1, 4).index_select(0, segment.reshape(-1)).view(*segment.shape, 4)
        threshold, _, length, _ = found.unbind(dim=-1)
        other, first = found[..., 1:2].view(torch.int32).unbind(dim=-1)
        return threshold, other, first, length, found[..., 3:].view(torch.float64)[..., 0]

    def to(self, device: torch.device) -> SegmentRows:
        """The same rows on another device."""
        return SegmentRows(*(tensor.to(device) for tensor in self))


def _packed(threshold: Tensor, other: Tensor, first: Tensor, length: Tensor, log_ratio: Tensor) -> Tensor:
    full = threshold >= 1
    # The largest float64 below 1, and what is left of the slot is its own segment's too.
    threshold = threshold.clamp(0.0, 1 - 2.0**-53)
    coins = (threshold * 2.0**COIN_BITS).to(torch.int64)
    integers = torch.stack([other.where(~full, 0), first], dim=2).to(torch.int32).view(torch.int64)[..., 0]
    return torch.stack([coins, integers, length, log_ratio.view(torch.int64)], dim=2)


class SegmentSubstitutes(Substitutes):
    """Draws from rows of segments; ``tokens (B, T)`` int64 are in the table, ``known (B, T)`` says which really are."""

    def __init__(self, rows: SegmentRows, tokens: Tensor, known: Tensor) -> None:
        self.rows, self.tokens = rows, tokens
        self.count = select(rows.num_substitutes, tokens) * known

    def draw(self, numbers: Numbers) -> tuple[Tensor, Tensor]:
        """A slot, one of its two segments by a coin of its own, and a token of that."""
        rows, width = self.rows, self.rows.segments.shape[1]
        # As many slots in every row.
        segment = numbers.choose(torch.full_like(self.tokens, width)) + self.tokens * width
        numbers = numbers.others(Purpose.SIMILAR)
        threshold, other, *_ = rows.at(segment)
        segment = segment + other.where(numbers.coin >= threshold, 0)
        _, _, first, length, log_ratio = rows.at(segment)
        return select(rows.by_rank, numbers.choose(length) + first), log_ratio
