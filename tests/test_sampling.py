"""The Hamming sampler against its distribution, and importance weights against their definition."""

import itertools
import math

import numpy as np
import pytest
import torch

from smoothloss.sampling import (
    BatchPool,
    HammingSampler,
    ReferencePool,
    VocabularyPool,
    effective_sample_size,
    importance_weights,
)

SPECIAL = (0, 1, 2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def chi_square(observed, expected):
    """Pearson's statistic over its degrees of freedom's 0.9999 quantile (Wilson-Hilferty): above 1 is a failure."""
    observed, expected = np.asarray(observed, dtype=float), np.asarray(expected, dtype=float)
    large = expected >= 10
    observed = np.append(observed[large], observed[~large].sum())
    expected = np.append(expected[large], expected[~large].sum())
    observed, expected = observed[expected > 0], expected[expected > 0]
    degrees = len(expected) - 1
    quantile = degrees * (1 - 2 / (9 * degrees) + 3.719 * math.sqrt(2 / (9 * degrees))) ** 3
    return ((observed - expected) ** 2 / expected).sum() / quantile


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


def test_special_tokens_are_neither_replaced_nor_drawn():
    target = torch.randint(0, 20, (8, 10), generator=generator(3))
    target[:, -1] = -100
    lengths = torch.tensor([0, 1, 2, 3, 5, 8, 10, 10])
    references = torch.cat([target.roll(1, 0), torch.zeros(8, 2, dtype=torch.int64)], dim=1)
    fixed = (target < 3) | (torch.arange(10) >= lengths[:, None])
    for pool in (VocabularyPool(20, exclude=SPECIAL), BatchPool(SPECIAL), ReferencePool(SPECIAL)):
        samples = HammingSampler(5.0, pool)(target, lengths, 2000, generator(), references)
        assert (samples.tokens == target)[:, fixed].all()
        changed = samples.tokens != target
        assert changed.any()
        assert (samples.tokens[changed] >= 3).all()
        assert (samples.tokens[changed] < 20).all()
        assert torch.equal(samples.distance, changed.sum(-1))


def test_every_position_is_replaced_when_it_is_as_good_as_certain():
    """A substitute never equals the original: at odds of 10^5, an equal one would show as an unchanged token."""
    target = torch.randint(0, 100_000, (4, 50), generator=generator(3))
    samples = HammingSampler(1e6, VocabularyPool(100_000))(target, None, 200, generator())
    unchanged = (samples.tokens == target).double().mean()
    assert float(unchanged) < 2e-4
    assert int(samples.distance.sum()) == int((samples.tokens != target).sum())


@pytest.mark.parametrize("original", [0, 4, 9, 11, 12])
def test_substitutes_are_uniform(original):
    """For an original that is the pool's first, middle, last token, and for ones that are not in it."""
    pool = VocabularyPool(12, exclude=(10, 11)) if original != 12 else VocabularyPool(12)
    target = torch.full((1, 4), original)
    samples = HammingSampler(2.0, pool)(target, None, 50_000, generator())
    drawn = torch.bincount(samples.tokens[samples.tokens != original], minlength=13)
    allowed = [token for token in range(12) if token not in (original, *pool.exclude)]
    if original in pool.exclude:
        assert int(drawn.sum()) == 0
        return
    assert int(drawn.sum()) == int(drawn[allowed].sum())
    assert chi_square(drawn[allowed], np.full(len(allowed), int(drawn.sum()) / len(allowed))) < 1


def test_each_pool_draws_from_its_own_set():
    target = torch.tensor([[5, 6, 7, 2], [8, 9, 2, 0], [8, 8, 8, 2]])
    lengths = torch.tensor([3, 2, 3])
    references = torch.tensor([[5, 6, 11, 12, -1], [13, 2, -1, 13, 13], [8, -1, 8, -1, -1]])

    def drawn(pool):
        samples = HammingSampler(3.0, pool)(target, lengths, 3000, generator(), references)
        changed = samples.tokens != target
        return [set(samples.tokens[:, b][changed[:, b]].tolist()) for b in range(3)]

    assert drawn(BatchPool(SPECIAL)) == [{5, 6, 7, 8, 9}, {5, 6, 7, 8, 9}, {5, 6, 7, 9}]
    assert drawn(ReferencePool(SPECIAL)) == [{5, 6, 11, 12}, {13}, set()]
    assert drawn(VocabularyPool(10, SPECIAL)) == [set(range(3, 10)), set(range(3, 10)), set(range(3, 10)) - {8}]


def test_a_pool_without_substitutes_changes_nothing():
    target = torch.tensor([[4, 4, 4]])
    empty = torch.full((1, 3), -1)
    for pool, references in (
        (VocabularyPool(5, exclude=(0, 1, 2, 3)), None),
        (VocabularyPool(4, exclude=(0, 1, 2, 3)), None),
        (BatchPool(), None),
        (ReferencePool(), empty),
        (ReferencePool(), empty[:, :0]),
    ):
        samples = HammingSampler(10.0, pool)(target, None, 20, generator(), references)
        assert torch.equal(samples.tokens, target.expand(20, 1, 3))
        assert (samples.distance == 0).all()
        assert (samples.log_prob == 0).all()


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
    weights = importance_weights(samples.log_prob, samples.log_prob, tau=1.0, normalize="batch", clip=1.0)
    assert effective_sample_size(weights).shape == (3,)


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
        (lambda: VocabularyPool(0), ValueError, "size: got 0"),
        (lambda: VocabularyPool(4.0), TypeError, "size: got 4.0"),
        (lambda: VocabularyPool(4, exclude=[4]), ValueError, "exclude: got token 4"),
        (lambda: BatchPool(exclude=[-1]), ValueError, "exclude: got token -1"),
        (lambda: BatchPool(exclude=["a"]), TypeError, "exclude: got 'a'"),
    ],
)
def test_settings_are_checked(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_importance_weights_are_the_definition(dtype):
    scores = torch.rand(5, 3, generator=generator(1)).to(dtype)
    log_prob = (-20 * torch.rand(5, 3, generator=generator(2))).to(dtype)
    expected = (scores.double().clamp(max=0.6) / 0.4).exp() / log_prob.double().exp()
    weights = importance_weights(scores, log_prob, tau=0.4, clip=0.6)
    assert weights.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(weights.double(), expected / expected.sum(0), rtol=1e-5, atol=0)
    weights = importance_weights(scores, log_prob, tau=0.4, clip=0.6, normalize="batch")
    torch.testing.assert_close(weights.double(), expected / expected.sum(0).mean(), rtol=1e-5, atol=0)
    assert float(weights.sum(0).mean()) == pytest.approx(1, abs=1e-6)


def test_importance_weights_do_not_overflow():
    log_prob = torch.tensor([[-5000.0, -1.0], [-5001.0, -900.0]])
    for normalize in ("samples", "batch"):
        weights = importance_weights(torch.ones(2, 2), log_prob, tau=1e-3, normalize=normalize)
        assert weights.isfinite().all()
    weights = importance_weights(torch.ones(2, 2), log_prob, tau=1e-3)
    torch.testing.assert_close(weights[:, 0], torch.tensor([0.0, 1.0]).softmax(0))


def test_one_sample_has_weight_one_unless_the_batch_normalises():
    scores, log_prob = torch.tensor([[0.0, 1.0, 2.0]]), torch.zeros(1, 3)
    assert importance_weights(scores, log_prob, tau=1.0).tolist() == [[1.0, 1.0, 1.0]]
    weights = importance_weights(scores, log_prob, tau=1.0, normalize="batch")
    torch.testing.assert_close(weights, scores.softmax(-1) * 3)


def test_importance_weights_estimate_an_expectation():
    """Sampling at one temperature and weighting by another's reward gives the other's mean distance."""
    target = torch.zeros(1, 6, dtype=torch.int64)
    samples = HammingSampler(0.6, VocabularyPool(9))(target, None, 200_000, generator())
    weights = importance_weights(-samples.distance.double(), samples.log_prob, tau=0.4)
    expected = (distance_distribution(6, 9, 0.4) * np.arange(7)).sum()
    assert float((weights * samples.distance).sum()) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"scores": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "scores: got dtype"),
        ({"log_prob": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "log_prob: got dtype"),
        ({"scores": torch.zeros(3, 2)}, ValueError, "scores, log_prob: got shapes"),
        ({"tau": 0.0}, ValueError, "tau: got 0"),
        ({"normalize": "none"}, ValueError, "normalize: got 'none'"),
        ({"clip": math.nan}, ValueError, "clip: got nan"),
    ],
)
def test_arguments_of_importance_weights_are_checked(changes, error, message):
    arguments = {"scores": torch.zeros(2, 3), "log_prob": torch.zeros(2, 3), "tau": 1.0, **changes}
    with pytest.raises(error, match=message):
        importance_weights(arguments.pop("scores"), arguments.pop("log_prob"), **arguments)


def test_effective_sample_size():
    weights = torch.tensor([[1.0, 1e-30, 0.0, 1.0], [1.0, 0.0, 0.0, 3.0]])
    torch.testing.assert_close(effective_sample_size(weights), torch.tensor([2.0, 1.0, 0.0, 1.6]))
    assert effective_sample_size(torch.zeros(0, 2)).tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="weights: got shape"):
        effective_sample_size(torch.ones(2))
