"""Sampling by edit distance: substitutions, deletions and insertions."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from smoothloss._validation import check_integer
from smoothloss.sampling._implementations import Implementations
from smoothloss.sampling.hamming import Temperature
from smoothloss.sampling.pools import UniformPool, wide_enough
from smoothloss.sampling.samples import Sampler, Samples, Sentences, check_tau

Implementation = Literal["auto", "reference", "native", "triton"]
_IMPLEMENTATIONS = Implementations(
    {
        "reference": "smoothloss.sampling._edit_reference",
        "native": "smoothloss.sampling._edit_native",
        "triton": "smoothloss.sampling._edit_triton",
    },
    preference={"cpu": ("native", "reference"), "cuda": ("native", "triton", "reference")},
)


class EditSettings(NamedTuple):
    """What a draw needs to know of the sampler.

    Attributes:
        temperature: What is known of tau.
        max_insertions: K.
        pad: What fills a sample beyond the ground truth's tail.
    """

    temperature: Temperature
    max_insertions: int
    pad: int

    def token_dtype(self, sentences: Sentences) -> torch.dtype:
        """The dtype of samples: it holds the ground truths', the pool's tokens and the padding."""
        references = None if sentences.references is None else sentences.references.dtype
        return wide_enough(sentences.pool.token_dtype(sentences.target.dtype, references), self.pad)


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
        impl: ``"auto"``, or the implementation that must draw: ``"reference"``, ``"native"`` or ``"triton"``. All
            of them draw the same samples.

    Raises:
        TypeError: ``pool`` is another pool or none, or a number no integer.
        ValueError: ``tau`` is not a finite number > 0, ``max_insertions < 1``, or ``impl`` another name.
        RuntimeError: At the call: ``impl`` names an implementation that cannot run there, with the reason.
    """

    pool: UniformPool

    def __init__(
        self, tau: float, pool: UniformPool, *, max_insertions: int = 4, pad: int = -100,
        impl: Implementation = "auto",
    ) -> None:  # fmt: skip
        self.tau = check_tau(tau)
        if not isinstance(pool, UniformPool):
            raise TypeError(f"pool: got {type(pool).__name__}, expected a VocabularyPool, BatchPool or ReferencePool")
        self.pool = pool
        self.max_insertions = check_integer(max_insertions, "max_insertions", 1)
        self.pad = check_integer(pad, "pad", -(2**63), 2**63 - 1)
        _IMPLEMENTATIONS.check(impl)
        self.impl = impl
        self._settings = EditSettings(Temperature.of(self.tau), self.max_insertions, self.pad)

    def _draw(self, sentences: Sentences, num_samples: int, seed: Tensor) -> Samples:
        implementation = _IMPLEMENTATIONS.module(self.impl, sentences.target.device, sentences)
        drawn: Samples = implementation.draw(sentences, num_samples, seed, self._settings)
        return drawn

    def __repr__(self) -> str:
        return f"EditSampler(tau={self.tau:g}, pool={self.pool}, max_insertions={self.max_insertions}, pad={self.pad})"
