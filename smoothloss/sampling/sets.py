"""Sets of tokens, one for each sentence or one for all, in torch: the definition of what the kernels build."""

from __future__ import annotations

import torch
from torch import Tensor

# Stands for no token. It sorts before all that can be in a set: negative tokens never are.
NO_TOKEN = -1


class TokenSets:
    """Sets of tokens in the order of their first appearance: the place of a token is its rank.

    Attributes:
        tokens: ``(B or 1, W)`` int64, each row a set, then at least one entry that is no token.
        size: ``(B or 1,)`` int64, the tokens in each row.
    """

    def __init__(self, tokens: Tensor, keep: Tensor) -> None:
        """Take each row of ``tokens (B or 1, W)`` without its repeats, and without what ``keep`` does not want."""
        tokens = torch.nn.functional.pad(tokens.to(torch.int64).where(keep, NO_TOKEN), (0, 1), value=NO_TOKEN)
        # Stable: the first of equals is the one that appears first.
        self._ordered, place = tokens.sort(dim=-1, stable=True)
        starts = torch.nn.functional.pad(self._ordered[:, 1:] != self._ordered[:, :-1], (1, 0), value=True)
        is_first = torch.zeros_like(tokens, dtype=torch.bool)
        is_first.scatter_(1, place, starts & (self._ordered >= 0))
        rank = is_first.cumsum(dim=-1) - 1
        self._ranks = rank.gather(1, place)
        # All that is not kept goes to the last column, as no token.
        column = rank.where(is_first, tokens.shape[1] - 1)
        self.tokens = torch.full_like(tokens, NO_TOKEN).scatter_(1, column, tokens.where(is_first, NO_TOKEN))
        self.size = is_first.sum(dim=-1)

    def find(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rank of each of ``(B, T)`` tokens in its sentence's set, and whether it is there at all."""
        tokens = tokens.to(torch.int64).contiguous()
        if self.tokens.shape[0] == 1:
            column = torch.searchsorted(self._ordered[0], tokens).clamp_(max=self._ordered.shape[1] - 1)
            found, rank = select(self._ordered, column), select(self._ranks, column)
        else:
            column = torch.searchsorted(self._ordered, tokens).clamp_(max=self._ordered.shape[1] - 1)
            found, rank = self._ordered.gather(1, column), self._ranks.gather(1, column)
        return rank, (found == tokens) & (tokens >= 0)

    def __getitem__(self, place: Tensor) -> Tensor:
        """The tokens at ``(L, B, X)`` places of the sentences' sets."""
        if self.tokens.shape[0] > 1:
            place = place + torch.arange(self.tokens.shape[0], device=place.device)[:, None] * self.tokens.shape[1]
        return select(self.tokens, place)


def select(values: Tensor, index: Tensor) -> Tensor:
    """``values.take(index)``, in less than half the time."""
    return values.view(-1).index_select(0, index.reshape(-1)).view(index.shape)
