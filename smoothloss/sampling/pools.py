"""Pools: the tokens that may take a token's place (V_sub, section 3.2 of the paper), and draws from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor

# Sorts behind every token id, so that a row of a set is its tokens and then padding.
_NO_TOKEN = torch.iinfo(torch.int64).max


class Substitutes(ABC):
    """What a pool hands to a sampler: for each token of a batch how many substitutes it has, and draws of them.

    A token is never its own substitute.

    Attributes:
        count: ``(B, T)`` int64, the number of substitutes.
    """

    count: Tensor

    @abstractmethod
    def draw(self, number: Tensor) -> tuple[Tensor, Tensor]:
        """Turn random numbers into substitutes.

        Args:
            number: ``(L, B, T)`` float64, uniform in ``[0, count)``; 0 where nothing is to be drawn.

        Returns:
            Tokens ``(L, B, T)`` int64, and ``log(count * P(token))``, 0 where all substitutes are alike, as float64
            that broadcasts to the same shape. Where there is no substitute they mean nothing and must not be used.
        """


class TokenSets:
    """Sorted sets of tokens, one for each sentence or one for all.

    Attributes:
        tokens: ``(B or 1, W)`` int64, each row ascending, without repeats, then at least one entry that is no token id.
        size: ``(B or 1,)`` int64, the tokens in each row.
    """

    def __init__(self, tokens: Tensor, keep: Tensor | None = None) -> None:
        """Sorts ``tokens (B or 1, W)``, leaving out repeats and what ``keep`` (same shape, bool) does not want."""
        tokens = tokens.to(torch.int64)
        if keep is not None:
            tokens = tokens.masked_fill(~keep, _NO_TOKEN)
        # The last entry is padding, so that an empty set needs no path of its own.
        ordered = torch.cat([tokens, tokens.new_full((tokens.shape[0], 1), _NO_TOKEN)], dim=-1).sort(dim=-1).values
        place = torch.nn.functional.pad((ordered[:, 1:] != ordered[:, :-1]).cumsum(dim=-1), (1, 0))
        # Repeats write their token where it already is. The last entry is padding, the first one of it behind the set.
        self.tokens = torch.full_like(ordered, _NO_TOKEN).scatter_(1, place, ordered)
        self.size = place[:, -1]

    def find(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Where each of ``(B, T)`` tokens is, or would be, in its sentence's set, and whether it is there."""
        tokens = tokens.to(torch.int64).contiguous()
        if self.tokens.shape[0] == 1:
            rank = torch.searchsorted(self.tokens[0], tokens)
            return rank, select(self.tokens, rank) == tokens
        # Token ids are below the padding, so that the rank is always a column.
        rank = torch.searchsorted(self.tokens, tokens)
        return rank, self.tokens.gather(1, rank) == tokens

    def __getitem__(self, place: Tensor) -> Tensor:
        """The tokens at ``(L, B, X)`` places of the sentences' sets."""
        if self.tokens.shape[0] > 1:
            place = place + torch.arange(self.tokens.shape[0], device=place.device)[:, None] * self.tokens.shape[1]
        return select(self.tokens, place)


class UniformSubstitutes(Substitutes):
    """The tokens of a sentence's set other than the token itself, all alike.

    Attributes:
        sets: The sets.
        inside: ``(B, T)`` bool, whether the token is in its sentence's set.
    """

    def __init__(self, sets: TokenSets, target: Tensor) -> None:
        self.sets = sets
        self.rank, self.inside = sets.find(target)
        self.count = sets.size[:, None] - self.inside.to(torch.int64)

    def draw(self, number: Tensor) -> tuple[Tensor, Tensor]:
        """The substitute whose place in the set, not counting the token itself, is the number rounded down."""
        place = number.to(torch.int64)
        # Counting the set's tokens without the original: the places from its rank on move by one.
        place += self.inside & (place >= self.rank)
        return self.sets[place], number.new_zeros(())


class Pool(ABC):
    """The tokens that may take a token's place.

    Args:
        exclude: Token ids that are never drawn and never replaced: PAD, BOS, EOS, UNK.
    """

    def __init__(self, exclude: Iterable[int] = ()) -> None:
        self.exclude = tuple(sorted(set(exclude)))
        for token in self.exclude:
            if isinstance(token, bool) or not isinstance(token, int):
                raise TypeError(f"exclude: got {token!r} ({type(token).__name__}), expected integer token ids")
            if token < 0:
                raise ValueError(f"exclude: got token {token}, expected token ids >= 0")
        self._excluded: dict[torch.device, Tensor] = {}

    def is_excluded(self, tokens: Tensor) -> Tensor:
        """Which of ``(B, T)`` tokens may neither be drawn nor replaced: the excluded ones and negative ids."""
        if tokens.device not in self._excluded:
            # Once for each device: building it from a list waits for the device. The first entry is for negative ids,
            # the last one for all beyond the excluded.
            top = max(self.exclude, default=-1)
            flags = [True, *(token in self.exclude for token in range(top + 1)), False]
            self._excluded[tokens.device] = torch.tensor(flags, device=tokens.device)
        table = self._excluded[tokens.device]
        return select(table, tokens.to(torch.int64).clamp(-1, table.shape[0] - 2) + 1)

    @abstractmethod
    def substitutes(self, target: Tensor, replaceable: Tensor, references: Tensor | None) -> Substitutes:
        """The substitutes of each token.

        Args:
            target: ``(B, T)`` ground truths.
            replaceable: ``(B, T)`` bool, the positions within a sentence whose token is not excluded.
            references: ``(B, R)`` token ids, negative in padding, or None.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}(exclude={self.exclude})"


class UniformPool(Pool):
    """A pool that is a set of tokens for each sentence, all of them alike."""

    @abstractmethod
    def sets(self, target: Tensor, replaceable: Tensor, references: Tensor | None) -> TokenSets:
        """The set of each sentence; arguments as of :meth:`substitutes`."""

    def substitutes(self, target: Tensor, replaceable: Tensor, references: Tensor | None) -> UniformSubstitutes:
        """The tokens of the sentence's set other than the token itself."""
        return UniformSubstitutes(self.sets(target, replaceable, references), target)


class VocabularyPool(UniformPool):
    """All tokens ``0 <= token < size`` that are not excluded: one pool for everything.

    Args:
        size: V, the size of the vocabulary.
        exclude: Token ids that are never drawn and never replaced.
    """

    def __init__(self, size: int, exclude: Iterable[int] = ()) -> None:
        super().__init__(exclude)
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"size: got {size!r} ({type(size).__name__}), expected an integer")
        if size < 1:
            raise ValueError(f"size: got {size}, expected at least 1")
        check_vocabulary(self.exclude, size)
        self.size = size
        self._sets: dict[torch.device, TokenSets] = {}

    def sets(self, target: Tensor, replaceable: Tensor, references: Tensor | None) -> TokenSets:
        """The vocabulary without the excluded tokens, the same for every sentence."""
        if target.device not in self._sets:
            tokens = torch.arange(self.size, device=target.device)[None]
            self._sets[target.device] = TokenSets(tokens, ~self.is_excluded(tokens))
        return self._sets[target.device]


class BatchPool(UniformPool):
    """The tokens of all ground truths of the mini-batch (V_batch)."""

    def sets(self, target: Tensor, replaceable: Tensor, references: Tensor | None) -> TokenSets:
        """The distinct replaceable tokens of the batch, the same for every sentence."""
        return TokenSets(target.reshape(1, -1), replaceable.reshape(1, -1))


class ReferencePool(UniformPool):
    """The tokens of all ground truths of the same input (V_refs), given to the sampler as ``references``."""

    def sets(self, target: Tensor, replaceable: Tensor, references: Tensor | None) -> TokenSets:
        """The distinct tokens of each row of ``references`` that are not excluded."""
        if references is None:
            raise ValueError("references: got None, expected a (B, R) tensor of token ids for a ReferencePool")
        return TokenSets(references, ~self.is_excluded(references))


def select(values: Tensor, index: Tensor) -> Tensor:
    """``values.take(index)``, in less than half the time."""
    return values.view(-1).index_select(0, index.reshape(-1)).view(index.shape)


def check_vocabulary(exclude: tuple[int, ...], size: int) -> None:
    """Raise ValueError where the largest excluded token is none of a vocabulary of this size."""
    if exclude and exclude[-1] >= size:
        raise ValueError(f"exclude: got token {exclude[-1]}, expected 0 <= token < {size}")
