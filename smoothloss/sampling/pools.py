"""Pools: the tokens that may take a token's place (V_sub, section 3.2 of the paper), and draws from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from smoothloss._validation import check_integer, check_token_ids
from smoothloss.sampling.philox import LARGEST_COUNT, Numbers
from smoothloss.sampling.sets import TokenSets, select

_INTEGERS = (torch.int16, torch.int32, torch.int64)


class Substitutes(ABC):
    """What a pool hands to a sampler: for each token of a batch how many substitutes it has, and draws of them.

    A token is never its own substitute.

    Attributes:
        count: ``(B, T)`` int64, the number of substitutes, below 2^31.
    """

    count: Tensor

    @abstractmethod
    def draw(self, numbers: Numbers) -> tuple[Tensor, Tensor]:
        """Turn the random numbers of ``(L, B, T)`` positions into substitutes.

        Returns:
            Tokens ``(L, B, T)`` int64, and ``log(count * P(token))``, 0 where all substitutes are alike, as float64
            that broadcasts to the same shape. Where there is no substitute they mean nothing and must not be used.
        """


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

    def at(self, place: Tensor) -> Tensor:
        """The substitutes at ``(L, B, T)`` places from 0 to ``count - 1``: the token itself is stepped over."""
        return self.sets[place + (self.inside & (place >= self.rank))]

    def draw(self, numbers: Numbers) -> tuple[Tensor, Tensor]:
        """One of the ``count`` places."""
        tokens = self.at(numbers.choose(self.count))
        return tokens, torch.zeros((), dtype=torch.float64, device=tokens.device)


class KernelPool(NamedTuple):
    """A pool as the kernels take it: addresses and sizes, see ``PoolTuple`` in csrc/bindings_draws.h."""

    kind: int
    references: int = 0
    token_bytes: int = 8
    references_width: int = 0
    by_rank: int = 0
    ranks: int = 0
    num_substitutes: int = 0
    segments: int = 0
    num_tokens: int = 0
    set_size: int = 0
    width: int = 0


_Made = TypeVar("_Made")


def kept(cache: dict[torch.device, _Made], device: torch.device, made: _Made, tensor: Tensor | None = None) -> _Made:
    """Return what was made for a device, and keep it, unless its `tensor`, or itself, holds no numbers (fake)."""
    if type(made if tensor is None else tensor) is Tensor:
        cache[device] = made
    return made


class Pool(ABC):
    """The tokens that may take a token's place.

    Args:
        exclude: Token ids that are never drawn and never replaced: PAD, BOS, EOS, UNK.
    """

    def __init__(self, exclude: Iterable[int] = ()) -> None:
        self.exclude = tuple(sorted(set(check_token_ids(exclude, "exclude"))))
        if self.exclude and self.exclude[-1] >= LARGEST_COUNT:
            raise ValueError(f"exclude: got token {self.exclude[-1]}, expected token ids below {LARGEST_COUNT}")
        self._excluded: dict[torch.device, Tensor] = {}

    def excluded(self, device: torch.device) -> Tensor:
        """Flags of what may neither be drawn nor replaced: of all negative ids, of 0, 1, ..., and of all beyond."""
        if device not in self._excluded:
            # Once for each device: the host's memory is copied there.
            flags = torch.zeros(max(self.exclude, default=-1) + 3, dtype=torch.bool, device="cpu")
            flags[[0, *(token + 1 for token in self.exclude)]] = True
            return kept(self._excluded, device, flags.to(device))
        return self._excluded[device]

    def is_excluded(self, tokens: Tensor) -> Tensor:
        """Which of ``(B, T)`` tokens may neither be drawn nor replaced: the excluded ones and negative ids."""
        flags = self.excluded(tokens.device)
        return select(flags, tokens.to(torch.int64).clamp(-1, flags.shape[0] - 2) + 1)

    @abstractmethod
    def substitutes(self, target: Tensor, replaceable: Tensor, references: Tensor | None) -> Substitutes:
        """The substitutes of each token.

        Args:
            target: ``(B, T)`` ground truths.
            replaceable: ``(B, T)`` bool, the positions within a sentence whose token is not excluded.
            references: ``(B, R)`` token ids, negative in padding, or None.
        """

    def token_dtype(self, target: torch.dtype, references: torch.dtype | None) -> torch.dtype:
        """The dtype of samples: the ground truths', or a wider one where a token of the pool needs it."""
        return target

    def kernel_pool(self, device: torch.device, references: Tensor | None) -> KernelPool | None:
        """This pool for the kernels of a device, or None where they do not know it."""
        return None

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
        self.size = check_integer(size, "size", 1, LARGEST_COUNT)
        check_vocabulary(self.exclude, self.size)
        self._sets: dict[torch.device, TokenSets] = {}
        self._ranks: dict[torch.device, Tensor] = {}

    def sets(self, target: Tensor, replaceable: Tensor, references: Tensor | None) -> TokenSets:
        """The vocabulary without the excluded tokens, the same for every sentence."""
        return self._set_on(target.device)

    def _set_on(self, device: torch.device) -> TokenSets:
        if device not in self._sets:
            tokens = torch.arange(self.size, device=device)[None]
            return kept(self._sets, device, TokenSets(tokens, ~self.is_excluded(tokens)), tokens)
        return self._sets[device]

    def token_dtype(self, target: torch.dtype, references: torch.dtype | None) -> torch.dtype:
        """Wide enough for the largest token."""
        return wide_enough(target, self.size - 1)

    def kernel_pool(self, device: torch.device, references: Tensor | None) -> KernelPool:
        """The set and the rank of every token."""
        tokens = self._set_on(device).tokens
        if device not in self._ranks:
            rank, inside = self._set_on(device).find(torch.arange(self.size, device=device)[None])
            self._ranks[device] = rank.where(inside, -1).to(torch.int32)
        set_size = self.size - len(self.exclude)
        return KernelPool(
            kind=0, by_rank=tokens.data_ptr(), ranks=self._ranks[device].data_ptr(), num_tokens=self.size,
            set_size=set_size,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"VocabularyPool({self.size}, exclude={self.exclude})"


class BatchPool(UniformPool):
    """The tokens of all ground truths of the mini-batch (V_batch)."""

    def sets(self, target: Tensor, replaceable: Tensor, references: Tensor | None) -> TokenSets:
        """The distinct replaceable tokens of the batch, the same for every sentence."""
        return TokenSets(target.reshape(1, -1), replaceable.reshape(1, -1))

    def kernel_pool(self, device: torch.device, references: Tensor | None) -> KernelPool:
        """The kernels build the set themselves."""
        return KernelPool(kind=1)


class ReferencePool(UniformPool):
    """The tokens of all ground truths of the same input (V_refs), given to the sampler as ``references``."""

    def sets(self, target: Tensor, replaceable: Tensor, references: Tensor | None) -> TokenSets:
        """The distinct tokens of each row of ``references`` that are not excluded."""
        references = _required(references)
        return TokenSets(references, ~self.is_excluded(references))

    def token_dtype(self, target: torch.dtype, references: torch.dtype | None) -> torch.dtype:
        """Wide enough for both."""
        return target if references is None else wider(target, references)

    def kernel_pool(self, device: torch.device, references: Tensor | None) -> KernelPool:
        """The kernels build the sets themselves."""
        references = _required(references)
        return KernelPool(
            kind=2, references=references.data_ptr(), token_bytes=references.element_size(),
            references_width=references.shape[1],
        )  # fmt: skip


def _required(references: Tensor | None) -> Tensor:
    if references is None:
        raise ValueError("references: got None, expected a (B, R) tensor of token ids for a ReferencePool")
    return references


def wide_enough(dtype: torch.dtype, *tokens: int) -> torch.dtype:
    """Return the dtype, or the narrowest of int32 and int64 that holds these tokens where it does not."""
    holds = (d for d in _INTEGERS if all(torch.iinfo(d).min <= token <= torch.iinfo(d).max for token in tokens))
    return wider(dtype, next(holds))


def wider(one: torch.dtype, other: torch.dtype) -> torch.dtype:
    """Return the wider one of two integer dtypes."""
    return one if one.itemsize >= other.itemsize else other


def check_vocabulary(exclude: tuple[int, ...], size: int) -> None:
    """Raise ValueError where the largest excluded token is none of a vocabulary of this size."""
    if exclude and exclude[-1] >= size:
        raise ValueError(f"exclude: got token {exclude[-1]}, expected 0 <= token < {size}")
