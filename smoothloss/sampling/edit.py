"""Sampling by edit distance: substitutions, deletions and insertions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from smoothloss._numbers import as_integer
from smoothloss.sampling._numbers_native import make_numbers
from smoothloss.sampling.edit_likelihood import Edits, log_weight
from smoothloss.sampling.philox import Numbers, Purpose
from smoothloss.sampling.pools import UniformPool, UniformSubstitutes, wide_enough
from smoothloss.sampling.samples import Sampler, Samples, Sentences, check_tau


class EditSampler(Sampler):
    r"""Samples ``y`` by edit scripts: ``q(y | y*) = sum of exp(-edits / tau) over the scripts that give y, over Z``.

    A script replaces s of the m tokens, each by one of its ``v`` choices: the pool's other tokens, or nothing, which
    deletes it. It inserts k tokens of the pool, each before a token that is kept or at the end, in one of
    ``C(m - s + k, k)`` arrangements. With ``e = s + k`` edits, a pool of v tokens that y* is part of, and k bounded,

        p(e) = exp(-e / tau) v^e sum_{k <= max_insertions} C(m, e - k) C(m - e + 2k, k) / Z,

    the prior of Norouzi et al. (2016): ``sum_s C(m, s) C(m + e - 2s, e - s) v^e`` scripts of e edits, the deletions
    among the v choices. There is one deletion to v - 1 substitutions, so that they are rare in a large pool. Every
    script has exactly the probability ``exp(-e / tau) / Z``. (A token that is not in its own pool has v + 1 choices,
    which share the odds of v.)

    ``distance`` is e, the edits that were made; the edit distance is at most that. ``log_prob`` is the sequence's, of
    all its scripts together, so that importance weights are right. As an approximation of
    ``exp(-edit_distance / tau)`` q counts a sequence once for every script that gives it: more than once where a token
    repeats, where a deletion is beside a substitution, or where an insertion draws what was deleted.
    ``importance_weights(-edit_distance, log_prob, tau=tau)`` undoes that.

    Samples have other lengths than the ground truth, so only the exact sequence losses can use them, with the target
    padded alike::

        samples = sampler(target, lengths, num_samples=5)
        target = torch.nn.functional.pad(target, (0, sampler.max_insertions), value=pad)

    Args:
        tau: Temperature, > 0. Norouzi's is another scale: ``tau = tau_norouzi / (1 + ln(v))``.
        pool: :class:`VocabularyPool`, :class:`BatchPool` or :class:`ReferencePool`. An inserted token replaces none, so
            there is no row of a :class:`SimilarPool` to draw it from.
        max_insertions: Insertions at most, >= 1: the samples are that much wider than the ground truth.
        pad: What fills a sample beyond the ground truth's tail: PAD, or the ``ignore_index`` of the loss.

    Raises:
        TypeError: ``pool`` is another pool or none, or a number no integer.
        ValueError: ``tau`` is not a finite number > 0, or ``max_insertions < 1``.
    """

    pool: UniformPool

    def __init__(self, tau: float, pool: UniformPool, *, max_insertions: int = 4, pad: int = -100) -> None:
        self.tau = check_tau(tau)
        if not isinstance(pool, UniformPool):
            raise TypeError(f"pool: got {type(pool).__name__}, expected a VocabularyPool, BatchPool or ReferencePool")
        self.pool = pool
        self.max_insertions = as_integer(max_insertions, "max_insertions", 1)
        self.pad = as_integer(pad, "pad", -(2**63), 2**63 - 1)

    def _draw(self, sentences: Sentences, num_samples: int, seed: Tensor) -> Samples:
        sentences.check_lengths()
        substitutes = self.pool.substitutes(sentences.target, sentences.replaceable, sentences.references)
        log_odds = substitutes.sets.size.double().log().expand(sentences.lengths.shape) - 1 / self.tau
        prior = _Prior.of(sentences, log_odds, self.max_insertions)
        numbers = _Numbers(seed, num_samples, sentences.target.shape, self.max_insertions)
        num_replaced, num_inserted = prior.draw(numbers)
        script = _draw_script(sentences, substitutes, num_replaced, num_inserted, numbers)
        tokens, from_pool, lengths = _apply(script, sentences, substitutes.inside, self.pad)
        edits = Edits.of(sentences, substitutes.count + 1, log_odds.exp(), self.tau)
        log_prob = log_weight(edits, tokens, from_pool, lengths, self.max_insertions) - prior.log_normalizer
        return Samples(
            tokens=tokens.to(self._dtype(sentences)),
            distance=num_replaced + num_inserted,
            log_prob=log_prob.float(),
            lengths=lengths,
        )

    def _dtype(self, sentences: Sentences) -> torch.dtype:
        references = None if sentences.references is None else sentences.references.dtype
        return wide_enough(self.pool.token_dtype(sentences.target.dtype, references), self.pad)

    def __repr__(self) -> str:
        return f"EditSampler(tau={self.tau:g}, pool={self.pool}, max_insertions={self.max_insertions}, pad={self.pad})"


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
        self._of = {
            purpose: make_numbers(seed, purpose, (num_samples, batch, width)) for purpose, width in widths.items()
        }

    def __getitem__(self, purpose: Purpose) -> Numbers:
        return self._of[purpose]


class _Prior(NamedTuple):
    """How many tokens are replaced and inserted.

    Attributes:
        cumulative: ``(B, (T + 1) (K + 1))``, the probability of all pairs (s, k) up to this one, k the faster.
        log_normalizer: ``(B,)``, the logarithm of the sum over all scripts.
        max_insertions: K.
    """

    cumulative: Tensor
    log_normalizer: Tensor
    max_insertions: int

    @classmethod
    def of(cls, sentences: Sentences, log_odds: Tensor, max_insertions: int) -> _Prior:
        """``p(s, k) ∝ C(f, s) C(m - s + k, k) odds^(s + k)`` for m tokens of which f are replaceable."""
        length, device = sentences.target.shape[1], log_odds.device
        free = sentences.replaceable.sum(dim=-1)[:, None]
        replaced = torch.arange(length + 1, device=device)
        inserted = torch.arange(max_insertions + 1, device=device)
        log_factorial = torch.arange(1, length + max_insertions + 2, device=device).double().lgamma()
        subsets = log_factorial[free] - log_factorial[replaced] - log_factorial[(free - replaced).clamp(min=0)]
        subsets = subsets.masked_fill(replaced > free, -torch.inf)
        kept = replaced[:, None]
        arrangements = log_factorial[kept + inserted] - log_factorial[kept] - log_factorial[inserted]
        edits = replaced[:, None] + inserted
        # No edits cost nothing, even where the odds of an edit are zero.
        cost = torch.where(edits > 0, edits * log_odds[:, None, None], 0.0)
        counts = subsets[:, :, None] + arrangements[(sentences.lengths[:, None] - replaced).clamp(min=0)]
        log_weight = (counts + cost).flatten(1)
        log_normalizer = log_weight.logsumexp(dim=-1)
        cumulative = (log_weight - log_normalizer[:, None]).exp().cumsum(dim=-1)
        return cls(cumulative, log_normalizer, max_insertions)

    def draw(self, numbers: _Numbers) -> tuple[Tensor, Tensor]:
        """Return the numbers of replaced and of inserted tokens, ``(L, B)`` each.

        The one choice that is made among float64 numbers: where devices round the prior's logarithms in other ways, a
        share of about 1e-14 of the draws may differ.
        """
        share = numbers[Purpose.EDIT_COUNTS].fraction()[..., 0].T.contiguous()
        pair = torch.searchsorted(self.cumulative, share * self.cumulative[:, -1:], right=True).T
        width = self.max_insertions + 1
        return pair.div(width, rounding_mode="floor"), pair.remainder(width)


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
