"""Sampling by Hamming distance: substitutions alone, every position for itself."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from torch import Tensor

from smoothloss.sampling._implementations import Implementations
from smoothloss.sampling.pools import Pool
from smoothloss.sampling.samples import Sampler, Samples, Sentences, check_tau

Implementation = Literal["auto", "reference", "native", "triton"]
_IMPLEMENTATIONS = Implementations(
    {
        "reference": "smoothloss.sampling._hamming_reference",
        "native": "smoothloss.sampling._hamming_native",
        "triton": "smoothloss.sampling._hamming_triton",
    },
    preference={"cpu": ("native", "reference"), "cuda": ("native", "triton", "reference")},
)
# The logarithm of about the largest float64.
_LARGEST_EXPONENT = 709.0


class Temperature(NamedTuple):
    """What a draw needs of tau.

    Attributes:
        kept_share: ``e^(1/tau)``, the odds of keeping a token against each of its substitutes.
        replaced_odds: ``e^(-1/tau)``.
        inverse: ``1/tau``; inf for the smallest of numbers.
    """

    kept_share: float
    replaced_odds: float
    inverse: float

    @classmethod
    def of(cls, tau: float) -> Temperature:
        """Return them once, for all devices."""
        return cls(math.exp(min(1 / tau, _LARGEST_EXPONENT)), math.exp(-1 / tau), 1 / tau)


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
        impl: ``"auto"``, or the implementation that must draw: ``"reference"``, ``"native"`` or ``"triton"``. All of
            them draw the same samples. A SimilarPool with an exact tail has the reference alone.

    Raises:
        TypeError: ``pool`` is no pool, or ``tau`` no number.
        ValueError: ``tau`` is not a finite number > 0, or ``impl`` another name.
        RuntimeError: At the call: ``impl`` names an implementation that cannot run there, with the reason.
    """

    def __init__(self, tau: float, pool: Pool, *, impl: Implementation = "auto") -> None:
        self.tau = check_tau(tau)
        if not isinstance(pool, Pool):
            raise TypeError(f"pool: got {type(pool).__name__}, expected a VocabularyPool or another of the pools here")
        _IMPLEMENTATIONS.check(impl)
        self.pool, self.impl, self._temperature = pool, impl, Temperature.of(self.tau)

    def _draw(self, sentences: Sentences, num_samples: int, seed: Tensor) -> Samples:
        implementation = _IMPLEMENTATIONS.module(self.impl, sentences.target.device, sentences)
        drawn: Samples = implementation.draw(sentences, num_samples, seed, self._temperature)
        return drawn

    def __repr__(self) -> str:
        return f"HammingSampler(tau={self.tau:g}, pool={self.pool})"
