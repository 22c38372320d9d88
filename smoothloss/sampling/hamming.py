"""Sampling by Hamming distance: substitutions alone, every position for itself."""

from __future__ import annotations

import math

import torch

from smoothloss.sampling.pools import Pool
from smoothloss.sampling.samples import Sampler, Samples, Sentences, check_tau, uniform

# The logarithm of about the largest float64.
_LARGEST_EXPONENT = 709.0


class HammingSampler(Sampler):
    r"""Samples ``y`` with ``q(y | y*) ∝ exp(-hamming(y, y*) / tau)`` over substitutions from a pool.

    Position t with ``n_t`` substitutes (tokens of the pool other than ``y*_t``) is replaced with probability
    ``n_t e^{-1/tau} / (1 + n_t e^{-1/tau})``, independently of the other positions; by each of them alike, or, from a
    :class:`SimilarPool`, in proportion to the similarity row. For a pool where all are alike that is exactly the
    stratified sampler of Appendix A: the distance is distributed as ``p(d) = C(T, d) (v - 1)^d e^{-d/tau} / Z`` for a
    pool of v tokens that ``y*`` is part of, and the log-probability is ``-d / tau - sum_t log(1 + n_t e^{-1/tau})``.
    For a :class:`SimilarPool` every replaced position adds ``log(n_t P(y_t))`` to that.

    A sentence has its own length. Beyond it, and where the ground truth is negative (``ignore_index``) or excluded
    by the pool, nothing is replaced; a pool without a substitute replaces nothing.

    Args:
        tau: Temperature, > 0. Norouzi's is another scale: ``tau = tau_norouzi / (1 + ln(v - 1))``.
        pool: :class:`VocabularyPool`, :class:`BatchPool`, :class:`ReferencePool` or :class:`SimilarPool`.

    Raises:
        TypeError: ``pool`` is no pool.
        ValueError: ``tau`` is not a finite number > 0.
    """

    def __init__(self, tau: float, pool: Pool) -> None:
        self.tau = check_tau(tau)
        if not isinstance(pool, Pool):
            raise TypeError(f"pool: got {type(pool).__name__}, expected a VocabularyPool or another of the pools here")
        self.pool = pool

    def _draw(self, sentences: Sentences, num_samples: int, generator: torch.Generator | None) -> Samples:
        target, lengths, _, replaceable, references = sentences
        substitutes = self.pool.substitutes(target, replaceable, references)
        count = torch.where(replaceable, substitutes.count, 0).double()
        # One number for coin and substitute: of n + e^{1/tau} the substitutes have 1 each, the original the rest.
        kept_share = math.exp(min(1 / self.tau, _LARGEST_EXPONENT))
        number = uniform((num_samples, *target.shape), target.device, generator).mul_(count + kept_share)
        replaced = number < count
        drawn, log_ratio = substitutes.draw(number.mul_(replaced))
        log_normalizer = (count * math.exp(-1 / self.tau)).log1p().sum(dim=-1)
        log_weight = torch.where(replaced, log_ratio - 1 / self.tau, 0.0).sum(dim=-1)
        return Samples(
            tokens=torch.where(replaced, drawn.to(target.dtype), target),
            distance=replaced.sum(dim=-1),
            log_prob=(log_weight - log_normalizer).float(),
            lengths=lengths.expand(num_samples, -1),
        )

    def __repr__(self) -> str:
        return f"HammingSampler(tau={self.tau:g}, pool={self.pool})"
