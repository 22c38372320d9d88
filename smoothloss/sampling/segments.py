"""Similarity rows laid out for drawing: K entries and an even tail as an alias table of the vocabulary's segments."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from smoothloss import _compiled as compiled
from smoothloss.sampling.alias import alias_table
from smoothloss.sampling.pools import Substitutes, select
from smoothloss.similarity import SimilarityTable

# Keeps a number in [0, 1] times n, rounded, below n. Nothing else is as small in float64 and yet above its rounding.
_ALMOST_ONE = 1 - 2**-50


class SegmentRows(NamedTuple):
    """Rows of K entries and an even tail.

    The tokens that may be drawn, ascending, are numbered by rank. A row divides them into W = 2 K + 3 segments of
    equally likely tokens: those before its first entry, this entry, those between it and the second, and so on, the
    token itself counted as an entry of weight 0.

    Attributes:
        num_substitutes: ``(V,)`` int64, the substitutes of each token.
        slots: ``(V,)`` float64, how many slots of the alias table there are for each substitute.
        segments: ``(V, W, 4)`` float64, what a draw needs of a segment side by side: the share of a slot up to which it
            is its own segment's; two int32 in the place of a number, whose it is beyond, less the number of the slot,
            and the first rank of the segment; the tokens of the segment, less what a share of them may be rounded up;
            the logarithm of the number of substitutes times the probability of a token of the segment.
        by_rank: ``(V + 1,)`` int64, the tokens by rank, then no tokens.
    """

    num_substitutes: Tensor
    slots: Tensor
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
        integers = torch.stack([other, start[:, :-1]], dim=2).to(torch.int32).view(torch.float64)[..., 0]
        log_ratio = share.log() + (count / mass.sum(dim=1)).log()[:, None]
        return cls(
            num_substitutes=count,
            slots=length.shape[1] * _ALMOST_ONE / count.clamp(min=1).double(),
            segments=torch.stack([threshold, integers, length * _ALMOST_ONE, log_ratio], dim=2),
            by_rank=torch.nn.functional.pad(torch.where(allowed, own[:, 0], size).sort().values, (0, 1)),
        )

    def at(self, segment: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Threshold, other, first rank, length and log ratio of segments, counted through all rows."""
        found = self.segments.view(-1, 4).index_select(0, segment.reshape(-1)).view(*segment.shape, 4)
        threshold, _, length, log_ratio = found.unbind(dim=-1)
        other, first = found[..., 1:2].view(torch.int32).unbind(dim=-1)
        return threshold, other, first, length, log_ratio

    def arguments(self) -> tuple[int, ...]:
        """The rows as ``_C`` takes them: addresses, V and W."""
        tables = (self.slots, self.segments, self.by_rank)
        return (*(table.data_ptr() for table in tables), *self.segments.shape[:2])


class SegmentSubstitutes(Substitutes):
    """Draws from rows of segments; ``tokens (B, T)`` int64 are in the table, ``known (B, T)`` says which really are."""

    def __init__(self, rows: SegmentRows, tokens: Tensor, known: Tensor) -> None:
        self.rows, self.tokens = rows, tokens
        self.count = select(rows.num_substitutes, tokens) * known

    def draw(self, number: Tensor) -> tuple[Tensor, Tensor]:
        """A slot and a share of it from the number, one of its two segments, and a token of that."""
        if number.device.type == "cpu" and compiled.load("_C")[0] is not None:
            return self._draw_native(number)
        return self._draw_torch(number)

    def _draw_torch(self, number: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.rows
        number = number * select(rows.slots, self.tokens)
        slot = number.to(torch.int64)
        # What is behind the point of the number decides between the slot's two segments, and among their tokens.
        share = number.sub_(slot)
        segment = slot.add_(self.tokens * rows.segments.shape[1])
        threshold, other, *_ = rows.at(segment)
        is_other = share >= threshold
        share = torch.where(is_other, (share - threshold) / (1 - threshold), share / threshold)
        _, _, first, length, log_ratio = rows.at(segment.add_(other * is_other))
        return select(rows.by_rank, share.mul_(length).to(torch.int32).add_(first)), log_ratio

    def _draw_native(self, number: Tensor) -> tuple[Tensor, Tensor]:
        """The same in one pass: the tables are larger than the cache, and torch's passes would each wait for it."""
        number, tokens = number.contiguous(), self.tokens.contiguous()
        drawn, log_ratio = torch.empty_like(number, dtype=torch.int64), torch.empty_like(number)
        inputs = (number.data_ptr(), tokens.data_ptr(), self.rows.arguments(), number.shape[0], tokens.numel())
        compiled.call("draw_segments", number, *inputs, drawn.data_ptr(), log_ratio.data_ptr())
        return drawn, log_ratio
