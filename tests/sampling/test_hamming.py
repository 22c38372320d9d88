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


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
@pytest.mark.parametrize("pool", [VocabularyPool(9), BatchPool(), ReferencePool()])
def test_empty_batches(shape, pool):
    target = torch.zeros(shape, dtype=torch.int64)
    references = torch.zeros(shape[0], 2, dtype=torch.int64)
    samples = HammingSampler(1.0, pool)(target, target.new_zeros(shape[0]), 4, generator(), references)
    assert samples.tokens.shape == (4, *shape)
    assert samples.distance.shape == samples.log_prob.shape == (4, shape[0])


def test_equal_seeds_give_equal_samples():
    target = torch.randint(0, 100, (6, 12), generator=generator(1))
    for pool in (VocabularyPool(100), BatchPool(), ReferencePool()):
        sampler = HammingSampler(0.3, pool)
        first, second, other = (sampler(target, None, 5, generator(seed), target.roll(1, 0)) for seed in (7, 7, 8))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert not torch.equal(first.tokens, other.tokens)


@pytest.mark.parametrize("pool", [VocabularyPool(9, SPECIAL), BatchPool(SPECIAL), ReferencePool(SPECIAL)])
def test_no_value_is_read_on_the_host(pool):
    """On the meta device there are none to read: .item(), .cpu() and boolean-mask indexing raise."""
    target = torch.zeros(3, 5, dtype=torch.int64, device="meta")
    samples = HammingSampler(0.5, pool)(target, target[:, 0], 4, references=target)
    assert samples.tokens.shape == (4, 3, 5)
    assert samples.lengths.shape == samples.distance.shape == samples.log_prob.shape == (4, 3)


def test_the_dtype_of_the_target_is_kept_and_nothing_is_overwritten():
    target = torch.randint(0, 30, (2, 6), dtype=torch.int32, generator=generator(1))
    before = target.clone()
    samples = HammingSampler(3.0, VocabularyPool(30))(target, torch.tensor([6, 3], dtype=torch.int32), 9)
    assert samples.tokens.dtype == torch.int32
    assert samples.distance.dtype == torch.int64
    assert torch.equal(target, before)
    assert "VocabularyPool" in repr(HammingSampler(3.0, VocabularyPool(30)))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"target": torch.zeros(3, dtype=torch.int64)}, ValueError, "target: got shape"),
        ({"target": torch.zeros(2, 3)}, TypeError, "target: got dtype torch.float32"),
        ({"lengths": torch.zeros(3, dtype=torch.int64)}, ValueError, r"lengths: got shape \(3,\), expected \(2,\)"),
        ({"lengths": torch.zeros(2)}, TypeError, "lengths: got dtype"),
        ({"num_samples": 0}, ValueError, "num_samples: got 0"),
        ({"num_samples": 2.0}, TypeError, "num_samples: got 2.0"),
        ({"references": None}, ValueError, "references: got None"),
        ({"references": torch.zeros(3, 1, dtype=torch.int64)}, ValueError, "references: got shape"),
        ({"references": torch.zeros(2, 1)}, TypeError, "references: got dtype"),
        ({"references": torch.zeros(2, 1, dtype=torch.int64, device="meta")}, ValueError, "references: got device"),
    ],
)
def test_arguments_of_a_call_are_checked(changes, error, message):
    target = torch.zeros(2, 3, dtype=torch.int64)
    arguments = {"target": target, "lengths": None, "num_samples": 1, "references": target, **changes}
    with pytest.raises(error, match=message):
        HammingSampler(1.0, ReferencePool())(**arguments)


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
