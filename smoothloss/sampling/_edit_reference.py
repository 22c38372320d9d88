"""The definition of a draw by edit distance, in torch: integers decide, on any device."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from smoothloss.sampling._edit_likelihood import Edits, log_weight
from smoothloss.sampling.philox import Numbers, Purpose
from smoothloss.sampling.pools import UniformPool, UniformSubstitutes
from smoothloss.sampling.samples import Samples, Sentences

if TYPE_CHECKING:
    from smoothloss.sampling.edit import EditSettings

# The shares of all pairs (s, k) together are about this many: what a choice among 62 bits can tell apart.
_ALL_SHARES = 2.0**62


def unavailable(sentences: Sentences) -> str | None:
    """Return None: it draws for all."""
    return None


def draw(
    sentences: Sentences, num_samples: int, seed: Tensor, edit: EditSettings, dtype: torch.dtype = torch.float32
) -> Samples:
    """Draw L samples for each sentence.

    Args:
        sentences: ``(B, T)`` ground truths and their pool, a :class:`UniformPool`.
        num_samples: L.
        seed: ``(1,)`` int64.
        edit: What the sampler was told.
        dtype: Of the log-probabilities, which are computed in float64.
    """
    sentences.check_lengths()
    pool = sentences.pool
    assert isinstance(pool, UniformPool)
    substitutes = pool.substitutes(sentences.target, sentences.replaceable, sentences.references)
    odds = (substitutes.sets.size.double() * edit.temperature.replaced_odds).expand(sentences.lengths.shape)
    prior = _Prior.of(sentences, odds, edit.max_insertions)
    numbers = _Numbers(seed, num_samples, sentences.target.shape, edit.max_insertions)
    num_replaced, num_inserted = prior.draw(numbers[Purpose.EDIT_COUNTS])
    script = _draw_script(sentences, substitutes, num_replaced, num_inserted, numbers)
    tokens, from_pool, lengths = _apply(script, sentences, substitutes.inside, edit.pad)
    edits = Edits.of(sentences, substitutes.count + 1, odds, edit.temperature.replaced_odds)
    log_prob = log_weight(edits, tokens, from_pool, lengths, edit.max_insertions) - prior.log_normalizer
    return Samples(
        tokens=tokens.to(edit.token_dtype(sentences)),
        distance=num_replaced + num_inserted,
        log_prob=log_prob.to(dtype),
        lengths=lengths,
    )


class _Numbers:
    """The random numbers of scripts, for each purpose those of as many positions as it has."""

    def __init__(self, seed: Tensor, num_samples: int, shape: torch.Size, max_insertions: int) -> None:
        batch, length = shape
        widths = {
            Purpose.EDIT_COUNTS: 1,
            Purpose.EDIT_REPLACED: length,
            Purpose.EDIT_CHOICE: length,
            Purpose.EDIT_GAP: max_insertions,
            Purpose.EDIT_INSERTED: length + max_insertions,
        }
        self._of = {purpose: Numbers(seed, purpose, (num_samples, batch, width)) for purpose, width in widths.items()}

    def __getitem__(self, purpose: Purpose) -> Numbers:
        return self._of[purpose]


class _Scaled(NamedTuple):
    """Numbers ``mantissa * 2^exponent``, which never overflow. Products, quotients and powers of two round alike
    everywhere.

    Attributes:
        mantissa: float64, 0 or from 1/2 to 1.
        exponent: int64; where the mantissa is 0, that of another number.
    """

    mantissa: Tensor
    exponent: Tensor

    def times(self, ratio: Tensor, odds: Tensor) -> _Scaled:
        """Return the product of all three."""
        mantissa, exponent = torch.frexp(self.mantissa * ratio * odds)
        return _Scaled(mantissa, self.exponent + exponent)


class _Prior(NamedTuple):
    """How many tokens are replaced and inserted.

    Attributes:
        cumulative: ``(B, (T + 1) (K + 1))`` int64, the shares of all pairs (s, k) up to this one, k the faster.
        log_normalizer: ``(B,)``, the logarithm of the sum over all scripts.
        max_insertions: K.
    """

    cumulative: Tensor
    log_normalizer: Tensor
    max_insertions: int

    @classmethod
    def of(cls, sentences: Sentences, odds: Tensor, max_insertions: int) -> _Prior:
        """``p(s, k) ∝ C(f, s) C(m - s + k, k) odds^(s + k)`` for m tokens of which f are replaceable."""
        weights = _pair_weights(sentences, odds, max_insertions)
        largest = weights.exponent.amax(dim=(1, 2))
        below = largest[:, None, None] - weights.exponent
        log_normalizer = weights.mantissa.ldexp(-below).sum(dim=(1, 2)).log() + largest.double() * math.log(2)
        pairs = (sentences.lengths + 1) * (max_insertions + 1)
        each = (_ALL_SHARES / pairs.double())[:, None, None]
        shares = (weights.mantissa * each).to(torch.int64) >> below.clamp(max=63)
        return cls(shares.flatten(1).cumsum(dim=-1), log_normalizer, max_insertions)

    def draw(self, numbers: Numbers) -> tuple[Tensor, Tensor]:
        """Return the numbers of replaced and of inserted tokens, ``(L, B)`` each."""
        share = numbers.choose_share(self.cumulative[:, -1:])[..., 0].T.contiguous()
        pair = torch.searchsorted(self.cumulative, share, right=True).T
        width = self.max_insertions + 1
        return pair.div(width, rounding_mode="floor"), pair.remainder(width)


def _pair_weights(sentences: Sentences, odds: Tensor, max_insertions: int) -> _Scaled:
    """The weights ``(B, T + 1, K + 1)`` of all pairs (s, k), each from the one before it: s first, then k."""
    free = sentences.replaceable.sum(dim=-1)
    replaced = torch.arange(sentences.target.shape[1] + 1, device=odds.device)
    rows = [_Scaled(torch.full_like(odds, 0.5), torch.ones_like(free))]
    for s in range(1, replaced.shape[0]):
        # Beyond f the ratio is 0 once, and all that follows from it.
        rows.append(rows[-1].times((free - s + 1).clamp(min=0).double() / s, odds))
    columns = [_Scaled(*(torch.stack(parts, dim=-1) for parts in zip(*rows, strict=True)))]
    kept = (sentences.lengths[:, None] - replaced).clamp(min=0)
    for k in range(1, max_insertions + 1):
        columns.append(columns[-1].times((kept + k).double() / k, odds[:, None]))
    return _Scaled(*(torch.stack(parts, dim=-1) for parts in zip(*columns, strict=True)))


class _Script(NamedTuple):
    """The edits of each sample.

    Attributes:
        kept: ``(L, B, T)`` bool, the tokens that stay.
        substituted: ``(L, B, T)`` bool, the tokens that another replaces.
        substitutes: ``(L, B, T)``, these others.
        inserted: ``(L, B, T + 1)``, the number of tokens inserted before the kept token of each rank, or at the end.
        insertions: ``(L, B, T + K)`` tokens to insert, whichever position turns out to be one.
    """

    kept: Tensor
    substituted: Tensor
    substitutes: Tensor
    inserted: Tensor
    insertions: Tensor


def _draw_script(
    sentences: Sentences, substitutes: UniformSubstitutes, num_replaced: Tensor, num_inserted: Tensor, numbers: _Numbers
) -> _Script:
    """Draw one of the scripts with these numbers of edits, all alike."""
    (num_samples, batch), length, device = num_replaced.shape, sentences.target.shape[1], num_replaced.device
    replaced = _choose(sentences.replaceable, num_replaced, numbers[Purpose.EDIT_REPLACED])
    kept = sentences.within & ~replaced
    # One choice beyond the substitutes: nothing.
    choice = numbers[Purpose.EDIT_CHOICE].choose(substitutes.count + 1)
    substituted = replaced & (choice < substitutes.count)
    gaps = _multisets(kept.sum(dim=-1) + 1, numbers[Purpose.EDIT_GAP])
    counted = torch.arange(gaps.shape[0], device=device)[:, None, None] < num_inserted
    inserted = torch.zeros((length + 1, num_samples, batch), dtype=torch.int64, device=device)
    inserted.scatter_add_(0, gaps, counted.to(torch.int64))
    return _Script(
        kept=kept,
        substituted=substituted,
        substitutes=substitutes.at(choice.where(substituted, 0)),
        inserted=inserted.permute(1, 2, 0),
        insertions=substitutes.sets[numbers[Purpose.EDIT_INSERTED].choose(substitutes.sets.size[:, None])],
    )


def _choose(available: Tensor, number: Tensor, numbers: Numbers) -> Tensor:
    """``(L, B, T)`` bool: ``number (L, B)`` of the positions that are ``available (B, T)``, all subsets alike."""
    keys = numbers.coin.masked_fill(~available, torch.iinfo(torch.int64).max)
    ordered = torch.nn.functional.pad(keys.sort(dim=-1).values, (1, 0), value=-1)
    return (keys <= ordered.gather(-1, number[..., None])) & available


def _multisets(size: Tensor, numbers: Numbers) -> Tensor:
    """``(K, L, B)`` draws from ``size (L, B)`` places, so that all multisets of the first k draws are alike.

    Polya's urn: a draw is one of the places or, with the weight of one place each, where an earlier draw is.
    """
    earlier = torch.arange(numbers.shape[2], device=size.device)
    draws = numbers.choose(size[..., None] + earlier).permute(2, 0, 1).contiguous()
    for step in range(1, draws.shape[0]):
        copied = draws.gather(0, (draws[step] - size).clamp(min=0)[None])[0]
        draws[step] = torch.where(draws[step] < size, draws[step], copied)
    return draws


def _apply(script: _Script, sentences: Sentences, inside: Tensor, pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the edited sequences ``(L, B, T + K)`` int64, which of their words are in the pool, and their lengths.

    ``inside (B, T)`` says which of the ground truths' are.
    """
    target = sentences.target.to(torch.int64)
    gap = script.kept.cumsum(dim=-1) - script.kept.to(torch.int64)
    # A kept token takes along what is inserted before it; the end is behind all.
    width = script.kept * (1 + script.inserted.gather(-1, gap)) + script.substituted
    end = width.cumsum(dim=-1)
    lengths = script.kept.sum(-1) + script.substituted.sum(-1) + script.inserted.sum(-1)
    dropped = script.insertions.shape[-1]
    place = torch.where(script.kept | script.substituted, end - 1, dropped)
    words = torch.where(script.substituted, script.substitutes, target)
    tokens = _scatter(script.insertions, place, words)
    from_pool = _scatter(torch.ones_like(tokens, dtype=torch.bool), place, script.substituted | inside)
    # Beyond the words the ground truth's own tail, then padding.
    positions = torch.arange(dropped, device=target.device)
    source = (positions - (lengths - sentences.lengths)[..., None]).clamp(0, target.shape[1])
    padded = torch.cat([target, target.new_full((target.shape[0], 1), pad)], dim=1).expand(*source.shape[:2], -1)
    tokens = torch.where(positions < lengths[..., None], tokens, padded.gather(-1, source))
    return tokens, from_pool, lengths


def _scatter(values: Tensor, place: Tensor, source: Tensor) -> Tensor:
    """``values (L, B, W)`` with ``source`` written to the places; a place W is none."""
    return torch.nn.functional.pad(values, (0, 1)).scatter_(-1, place, source)[..., :-1]
