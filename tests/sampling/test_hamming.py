"""The Hamming sampler against its distribution, closed form and enumerated."""

import itertools
import math

import numpy as np
import pytest
import torch

from smoothloss.sampling import BatchPool, HammingSampler, ReferencePool, VocabularyPool
from smoothloss.testing import chi_square

SPECIAL = (0, 1, 2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def distance_distribution(length, pool_size, tau):
    """Appendix A: p(d) = C(T, d) (v - 1)^d exp(-d / tau) / Z."""
    terms = [math.comb(length, d) * (pool_size - 1) ** d * math.exp(-d / tau) for d in range(length + 1)]
    return np.array(terms) / sum(terms)


def test_distances_follow_the_distribution_for_several_lengths_at_once():
    lengths = torch.tensor([1, 4, 9, 16])
    target = torch.randint(3, 50, (4, 16), generator=generator(1))
    sampler = HammingSampler(0.25, VocabularyPool(50, exclude=SPECIAL))
    samples = sampler(target, lengths, 100_000, generator())
    for column, length in enumerate(lengths.tolist()):
        expected = distance_distribution(length, 47, 0.25) * 100_000
        observed = torch.bincount(samples.distance[:, column], minlength=length + 1)
        assert chi_square(observed, expected) < 1


def test_the_chi_square_notices_a_wrong_temperature():
    samples = HammingSampler(0.26, VocabularyPool(50))(torch.full((1, 9), 7), None, 100_000, generator())
    observed = torch.bincount(samples.distance[:, 0], minlength=10)
    assert chi_square(observed, distance_distribution(9, 50, 0.25) * 100_000) > 1


@pytest.mark.parametrize("tau", [0.03, 0.1, 0.5, 20.0])
def test_log_prob_is_the_closed_form(tau):
    lengths = torch.tensor([2, 7, 12])
    target = torch.randint(3, 1000, (3, 12), generator=generator(1))
    samples = HammingSampler(tau, VocabularyPool(1000, exclude=SPECIAL))(target, lengths, 50, generator())
    normalizer = lengths.double() * math.log1p(996 * math.exp(-1 / tau))
    torch.testing.assert_close(samples.log_prob, (-samples.distance.double() / tau - normalizer).float())
    assert samples.log_prob.dtype == torch.float32
    positions = torch.arange(12) < lengths[:, None]
    assert torch.equal(samples.distance, ((samples.tokens != target) & positions).sum(-1))


@pytest.mark.parametrize("pool", ["vocabulary", "batch", "references"])
def test_q_sums_to_one_and_is_what_is_drawn(pool):
    """All sequences of a tiny vocabulary, each with its closed-form probability and its frequency."""
    target = torch.tensor([[3, 4, 3], [5, 2, 0]])
    lengths = torch.tensor([3, 2])
    references = torch.tensor([[4, 6, 4, -1], [2, -1, -1, 5]])
    pools = {
        "vocabulary": (VocabularyPool(7, exclude=SPECIAL), [{3, 4, 5, 6}] * 2),
        "batch": (BatchPool(exclude=SPECIAL), [{3, 4, 5}] * 2),
        "references": (ReferencePool(exclude=SPECIAL), [{4, 6}, {5}]),
    }
    built, sets = pools[pool]
    tau, draws = 0.8, 200_000
    samples = HammingSampler(tau, built)(target, lengths, draws, generator(), references)
    for sentence, allowed in enumerate(sets):
        original = target[sentence].tolist()
        replaceable = [token not in SPECIAL and t < lengths[sentence] for t, token in enumerate(original)]
        choices = [[y, *sorted(allowed - {y})] if free else [y] for y, free in zip(original, replaceable, strict=True)]
        normalizer = sum(math.log1p((len(options) - 1) * math.exp(-1 / tau)) for options in choices)
        log_q = {
            sequence: -sum(a != b for a, b in zip(sequence, original, strict=True)) / tau - normalizer
            for sequence in itertools.product(*choices)
        }
        assert sum(map(math.exp, log_q.values())) == pytest.approx(1, abs=1e-12)
        drawn, counts = samples.tokens[:, sentence].unique(dim=0, return_counts=True)
        drawn = [tuple(sequence) for sequence in drawn.tolist()]
        assert set(drawn) <= set(log_q)
        observed = dict(zip(drawn, counts.tolist(), strict=True))
        if len(log_q) > 1:
            expected = [draws * math.exp(value) for value in log_q.values()]
            assert chi_square([observed.get(sequence, 0) for sequence in log_q], expected) < 1
        for row in range(0, draws, 5000):
            value = log_q[tuple(samples.tokens[row, sentence].tolist())]
            assert float(samples.log_prob[row, sentence]) == pytest.approx(value, abs=1e-5)


def test_every_position_is_replaced_when_it_is_as_good_as_certain():
    """A substitute never equals the original: at odds of 10^5, an equal one would show as an unchanged token."""
    target = torch.randint(0, 100_000, (4, 50), generator=generator(3))
    samples = HammingSampler(1e6, VocabularyPool(100_000))(target, None, 200, generator())
    unchanged = (samples.tokens == target).double().mean()
    assert float(unchanged) < 2e-4
    assert int(samples.distance.sum()) == int((samples.tokens != target).sum())


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: HammingSampler(0.0, BatchPool()), ValueError, "tau: got 0"),
        (lambda: HammingSampler(math.nan, BatchPool()), ValueError, "tau: got nan"),
        (lambda: HammingSampler(1.0, "batch"), TypeError, "pool: got str"),
    ],
)
def test_settings_are_checked(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_lengths_are_those_of_the_ground_truths():
    target = torch.zeros(3, 5, dtype=torch.int64)
    sampler = HammingSampler(1.0, VocabularyPool(9))
    samples = sampler(target, torch.tensor([5, 0, 2], dtype=torch.int32), 4)
    assert samples.lengths.tolist() == [[5, 0, 2]] * 4
    assert samples.lengths.dtype == torch.int64
    assert sampler(target, None, 2).lengths.tolist() == [[5, 5, 5]] * 2
    assert samples[:3] == (samples.tokens, samples.distance, samples.log_prob)


def test_no_temperature_is_too_low():
    """At 1 / tau = 10^6 the odds of the original overflow."""
    target = torch.randint(0, 9, (2, 5))
    samples = HammingSampler(1e-6, VocabularyPool(9))(target, None, 100)
    assert torch.equal(samples.tokens, target.expand(100, 2, 5))
    assert (samples.log_prob == 0).all()
