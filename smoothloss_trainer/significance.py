"""Whether one system is better than another on a test set, or was lucky with its sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# At once, so that the weights of a large test set stay small.
_CHUNK = 250


@dataclass(frozen=True)
class Comparison:
    """A system against a baseline.

    Args:
        difference: Of the metric, system minus baseline, averaged over seeds.
        low: Lower end of the 95 % interval of the difference over resampled test sets and seeds.
        high: Upper end.
        p_value: Two-sided, of the hypothesis that there is no difference.
    """

    difference: float
    low: float
    high: float
    p_value: float


def paired_bootstrap(
    metric: Callable[[Tensor], Tensor], system: Tensor, baseline: Tensor, *, resamples: int = 2000, seed: int = 1
) -> Comparison:
    """The paired bootstrap over test sentences (Koehn 2004) and training seeds of a metric averaged over seeds.

    Each resample draws N sentences with replacement, the same ones for both systems and all seeds, and for each system
    as many seeds as it has, with replacement too. So the interval holds what the choice of the test set and that of the
    seed matter; with one seed it knows of the test set alone, and with two or three it still underrates the seed's part
    (drawn from S seeds, the variance of their mean comes out as (S - 1) / S of what it is).

    Args:
        metric: From summed statistics ``(..., K)`` to the metric ``(...)``.
        system: ``(S, N, K)`` what the metric adds up, for each of S seeds and N sentences.
        baseline: The same of the baseline, ``(S', N, K)``.
        resamples: How many.
        seed: Seeds the draws.

    Raises:
        ValueError: When the two were not scored on the same number of sentences.
    """
    count = system.shape[1]
    if baseline.shape[1] != count or not count:
        raise ValueError(f"baseline: got {baseline.shape[1]} sentences, expected {count}, as many as the system's")
    generator = torch.Generator().manual_seed(seed)
    found = torch.cat([
        _mean(metric, weights, system, generator) - _mean(metric, weights, baseline, generator)
        for weights in _resampled(count, resamples, generator)
    ])  # fmt: skip
    whole = torch.ones(1, count, dtype=torch.float64)
    low, high = _ends(found)
    # The observed sample is one of those that there could have been, so that p is never 0.
    tail = 1 + torch.minimum((found <= 0).sum(), (found >= 0).sum()).item()
    difference = float(_mean(metric, whole, system) - _mean(metric, whole, baseline))
    return Comparison(difference, low, high, min(1.0, 2 * tail / (resamples + 1)))


def interval(
    metric: Callable[[Tensor], Tensor], system: Tensor, *, resamples: int = 2000, seed: int = 1
) -> tuple[float, float]:
    """The 95 % interval of a metric averaged over seeds, sentences and seeds drawn as in :func:`paired_bootstrap`."""
    generator = torch.Generator().manual_seed(seed)
    drawn = _resampled(system.shape[1], resamples, generator)
    return _ends(torch.cat([_mean(metric, weights, system, generator) for weights in drawn]))


def _resampled(count: int, resamples: int, generator: torch.Generator) -> Iterator[Tensor]:
    """How often each of ``count`` sentences is in each resample, ``(R, N)``, some resamples at a time."""
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        drawn = torch.randint(count, (size, count), generator=generator)
        weights = torch.zeros(size, count, dtype=torch.float64)
        yield weights.scatter_add_(1, drawn, torch.ones_like(weights))


def _ends(found: Tensor) -> tuple[float, float]:
    low, high = torch.quantile(found, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def _mean(
    metric: Callable[[Tensor], Tensor],
    weights: Tensor,
    statistics: Tensor,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The metric of each resample, averaged over seeds: ``(R, N), (S, N, K) -> (R,)``; seeds are drawn as well."""
    values = metric(torch.einsum("rn,snk->rsk", weights, statistics.double()))
    if generator is not None:
        values = values.gather(1, torch.randint(values.shape[1], values.shape, generator=generator))
    return values.mean(-1)
