"""The definition of a draw by Hamming distance, in torch: integers decide, on any device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from smoothloss.sampling.philox import Numbers, Purpose, coin_threshold
from smoothloss.sampling.samples import Samples, Sentences

if TYPE_CHECKING:
    from smoothloss.sampling.hamming import Temperature


def unavailable(sentences: Sentences) -> str | None:
    """Return None: it draws for all."""
    return None


def draw(sentences: Sentences, num_samples: int, seed: Tensor, temperature: Temperature) -> Samples:
    """Draw L samples for each sentence.

    Args:
        sentences: ``(B, T)`` ground truths and their pool.
        num_samples: L.
        seed: ``(1,)`` int64.
        temperature: What is known of tau.
    """
    sentences.check_lengths()
    target, pool = sentences.target, sentences.pool
    substitutes = pool.substitutes(target, sentences.replaceable, sentences.references)
    count = substitutes.count.where(sentences.replaceable, 0)
    numbers = Numbers(seed, Purpose.HAMMING, (num_samples, *target.shape))
    replaced = numbers.coin < coin_threshold(count, temperature.kept_share)
    drawn, log_ratio = substitutes.draw(numbers)
    references = sentences.references
    dtype = pool.token_dtype(target.dtype, None if references is None else references.dtype)
    distance = replaced.sum(dim=-1)
    return Samples(
        tokens=torch.where(replaced, drawn, target.to(torch.int64)).to(dtype),
        distance=distance,
        log_prob=log_prob(distance, log_ratio.where(replaced, 0.0).sum(dim=-1), count, temperature),
        lengths=sentences.lengths.expand(num_samples, -1),
    )


def log_prob(distance: Tensor, ratio: Tensor, count: Tensor, temperature: Temperature) -> Tensor:
    """``log q`` of samples in float32, computed in float64.

    Args:
        distance: ``(L, B)``.
        ratio: ``(L, B)`` float64, the sum of the log ratios of a sample's substitutes.
        count: ``(B, T)``, the substitutes of each token that may be replaced, 0 elsewhere.
        temperature: What is known of tau.
    """
    log_normalizer = (count.double() * temperature.replaced_odds).log1p().sum(dim=-1)
    # No replacement costs nothing, even where 1/tau is inf.
    cost = torch.where(distance > 0, distance.double() * temperature.inverse, 0.0)
    return (ratio - cost - log_normalizer).float()
