"""The edit sampler against all edit scripts of tiny sentences, its prior against Norouzi's, samples against the DP."""

import collections
import itertools
import math

import pytest
import torch

import smoothloss.functional as F
from smoothloss import SimilarityTable
from smoothloss.sampling import (
    BatchPool,
    EditSampler,
    HammingSampler,
    ReferencePool,
    SimilarPool,
    VocabularyPool,
    importance_weights,
)
from smoothloss.testing import chi_square

SPECIAL = (0, 1, 2)
PAD, EOS = 0, 2
TABLE = SimilarityTable.from_embeddings(torch.eye(3), k=1, tau=1.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def all_scripts(sentence, pool, tau, max_insertions):
    """Every sequence with the sum of ``exp(-edits / tau)`` over the scripts that give it, script by script."""
    weight, total = math.exp(-1 / tau), collections.Counter()
    options = []
    for token in sentence:
        others = [] if token in SPECIAL else [*sorted(pool - {token}), None]
        share = weight if token in pool else weight * len(pool) / (len(pool) + 1)
        options.append([(token, True, 1.0), *((other, False, share) for other in others)])
    for choice in itertools.product(*options):
        kept = sum(is_kept for _, is_kept, _ in choice)
        for count in range(max_insertions + 1):
            for gaps in itertools.combinations_with_replacement(range(kept + 1), count):
                for inserted in itertools.product(sorted(pool), repeat=count):
                    script = math.prod(share for _, _, share in choice) * weight**count
                    total[edited(choice, gaps, inserted)] += script
    return total


def edited(choice, gaps, inserted):
    result, gap = [], 0
    for token, is_kept, _ in choice:
        if is_kept:
            result += [word for place, word in zip(gaps, inserted, strict=True) if place == gap]
            gap += 1
        result += [] if token is None else [token]
    return (*result, *(word for place, word in zip(gaps, inserted, strict=True) if place == gap))


def words(samples, sentence):
    rows = zip(samples.tokens[:, sentence].tolist(), samples.lengths[:, sentence].tolist(), strict=True)
    return [tuple(row[:length]) for row, length in rows]


def edit_distance(first, second):
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        previous, row[0] = row[:], i
        for j, b in enumerate(second, 1):
            row[j] = min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (a != b))
    return row[-1]


SENTENCES = {
    "two equal": ([3, 4, 3], {3, 4, 5}, 0.8, 2),
    "hot": ([3, 4, 3], {3, 4, 5}, 3.0, 1),
    "cold": ([4, 4], {3, 4, 5, 6}, 0.3, 3),
    "one": ([3], {3}, 1.0, 3),
    "none": ([], {3, 4}, 1.0, 3),
    "with a special token": ([3, 1, 4], {3, 4}, 1.0, 2),
    "with a token out of the pool": ([3, 9, 5], {3, 4, 5}, 1.0, 2),
}


@pytest.mark.parametrize("name", SENTENCES)
def test_sequences_follow_all_scripts(name):
    sentence, pool, tau, max_insertions = SENTENCES[name]
    draws, sampler = 100_000, EditSampler(tau, ReferencePool(SPECIAL), max_insertions=max_insertions, pad=PAD)
    target = torch.tensor([[*sentence, EOS, PAD]])
    samples = sampler(target, torch.tensor([len(sentence)]), draws, generator(), torch.tensor([sorted(pool)]))
    weights = all_scripts(sentence, pool, tau, max_insertions)
    normalizer = sum(weights.values())
    drawn = words(samples, 0)
    observed = collections.Counter(drawn)
    assert set(observed) <= set(weights)
    expected = [draws * weight / normalizer for weight in weights.values()]
    assert chi_square([observed[sequence] for sequence in weights], expected) < 1
    log_q = torch.tensor([math.log(weights[sequence] / normalizer) for sequence in drawn], dtype=torch.float64)
    torch.testing.assert_close(samples.log_prob[:, 0].double(), log_q, rtol=1e-6, atol=1e-6)


def test_the_chi_square_notices_a_wrong_temperature():
    sentence, pool, tau, max_insertions = SENTENCES["two equal"]
    sampler = EditSampler(tau * 1.05, ReferencePool(), max_insertions=max_insertions)
    samples = sampler(torch.tensor([sentence]), None, 100_000, generator(), torch.tensor([sorted(pool)]))
    weights, observed = all_scripts(sentence, pool, tau, max_insertions), collections.Counter(words(samples, 0))
    expected = [100_000 * weight / sum(weights.values()) for weight in weights.values()]
    assert chi_square([observed[sequence] for sequence in weights], expected) > 1


def prior(length, pool_size, tau, max_insertions):
    """Norouzi's count of scripts with e edits, v^e sum_s C(m, s) C(m + e - 2s, e - s), times exp(-e / tau)."""
    terms = []
    for e in range(length + max_insertions + 1):
        substituted = range(max(0, e - max_insertions), min(e, length) + 1)
        count = sum(math.comb(length, s) * math.comb(length + e - 2 * s, e - s) for s in substituted)
        terms.append(count * pool_size**e * math.exp(-e / tau))
    return torch.tensor(terms, dtype=torch.float64) / sum(terms)


def test_distances_follow_norouzis_prior_for_several_lengths_at_once():
    lengths = torch.tensor([0, 2, 5, 9])
    target = torch.randint(3, 50, (4, 9), generator=generator(1))
    draws = 40_000
    samples = EditSampler(0.2, VocabularyPool(50, SPECIAL), max_insertions=3)(target, lengths, draws, generator())
    for column, length in enumerate(lengths.tolist()):
        expected = prior(length, 47, 0.2, 3) * draws
        assert chi_square(torch.bincount(samples.distance[:, column], minlength=len(expected)), expected) < 1
        if length:
            other = prior(length, 47, 0.215, 3) * draws
            assert chi_square(torch.bincount(samples.distance[:, column], minlength=len(other)), other) > 1


@pytest.mark.parametrize("pool", [VocabularyPool(7, SPECIAL), BatchPool(SPECIAL), ReferencePool(SPECIAL)])
def test_the_edit_distance_is_at_most_the_edits(pool):
    target = torch.randint(3, 7, (6, 9), generator=generator(1))
    lengths = torch.tensor([0, 1, 3, 6, 8, 9])
    samples = EditSampler(0.7, pool, max_insertions=4)(target, lengths, 300, generator(), target)
    smaller = 0
    for column, length in enumerate(lengths.tolist()):
        original = target[column, :length].tolist()
        for sequence, edits in zip(words(samples, column), samples.distance[:, column].tolist(), strict=True):
            distance = edit_distance(original, sequence)
            assert distance <= edits
            smaller += distance < edits
            assert length - edits <= len(sequence) <= length + min(edits, 4)
    assert smaller > 0


def test_log_prob_is_at_least_that_of_the_script():
    """And next to nothing more in a large pool, where hardly any sequence has two scripts of as few edits."""
    target, lengths = torch.randint(0, 10_000, (4, 30), generator=generator(1)), torch.tensor([5, 10, 20, 30])
    tau, pool = 1 / math.log(10_000 * 20), VocabularyPool(10_000)
    samples = EditSampler(tau, pool, max_insertions=5)(target, lengths, 2000, generator())
    assert 0.5 < float(samples.distance.double().mean()) < 3
    for column, length in enumerate(lengths.tolist()):
        none_at_all = math.log(float(prior(length, 10_000, tau, 5)[0]))
        script = none_at_all - samples.distance[:, column].double() / tau
        excess = samples.log_prob[:, column].double() - script
        assert excess.min() > -1e-5
        assert excess.median() < 1e-3


@pytest.mark.parametrize("tau", [0.02, 0.08, 1.0, 1e4])
def test_long_sentences_do_not_underflow(tau):
    target = torch.randint(0, 100_000, (2, 200), generator=generator(1))
    samples = EditSampler(tau, VocabularyPool(100_000), max_insertions=8)(
        target, torch.tensor([200, 120]), 6, generator()
    )
    assert samples.log_prob.isfinite().all()
    assert (samples.log_prob <= 0).all()
    assert (samples.distance > 100).all() or tau < 0.1


def test_the_ground_truths_tail_follows_the_words():
    target = torch.tensor([[3, 4, 5, EOS, PAD], [6, 3, 4, 5, EOS], [5, EOS, PAD, PAD, PAD]])
    lengths = torch.tensor([3, 4, 1])
    for pool in (VocabularyPool(20, SPECIAL), BatchPool(SPECIAL), ReferencePool(SPECIAL)):
        samples = EditSampler(0.6, pool, max_insertions=3, pad=PAD)(target, lengths, 2000, generator(), target)
        assert samples.tokens.shape == (2000, 3, 8)
        inside = torch.arange(8) < samples.lengths[..., None]
        assert (samples.tokens[inside] >= 3).all()
        assert (samples.tokens[inside] < 20).all()
        last = samples.tokens.gather(-1, samples.lengths[..., None])
        assert (last == EOS).all()
        assert (samples.tokens[~inside] == PAD).sum() == (~inside).sum() - last.numel()
        assert (samples.lengths < lengths).any()
        assert (samples.lengths > lengths).any()


def test_tokens_that_must_stay_do():
    target = torch.tensor([[1, 5, -100, 6, 1]])
    samples = EditSampler(3.0, VocabularyPool(9, SPECIAL), max_insertions=2)(target, None, 500, generator())
    for sequence in words(samples, 0):
        assert [token for token in sequence if token in (1, -100)] == [1, -100, 1]
        assert not {0, 2} & set(sequence)


def test_importance_weights_undo_what_scripts_count_twice():
    """Weighted by exp(-edit_distance / tau), the samples have the mean distance of that very distribution."""
    sentence, pool, tau, max_insertions = [3, 4, 3], {3, 4, 5}, 0.7, 2
    sequences = list(all_scripts(sentence, pool, tau, max_insertions))
    distances = torch.tensor([edit_distance(sentence, sequence) for sequence in sequences], dtype=torch.float64)
    exact = ((-distances / tau).softmax(0) * distances).sum()
    sampler = EditSampler(tau, VocabularyPool(6, SPECIAL), max_insertions=max_insertions)
    samples = sampler(torch.tensor([sentence]), None, 100_000, generator())
    known = dict(zip(sequences, distances.tolist(), strict=True))
    drawn = torch.tensor([[known[sequence]] for sequence in words(samples, 0)])
    weights = importance_weights(-drawn, samples.log_prob, tau=tau)
    assert float((weights * drawn).sum()) == pytest.approx(float(exact), rel=0.01)
    assert float(drawn.mean()) != pytest.approx(float(exact), rel=0.05)


def test_without_a_pool_nothing_happens():
    target = torch.tensor([[4, 4, 4]])
    samples = EditSampler(10.0, ReferencePool(), pad=7)(target, None, 20, generator(), torch.full((1, 2), -1))
    assert samples.tokens[0, 0].tolist() == [4, 4, 4, 7, 7, 7, 7]
    assert torch.equal(samples.tokens, samples.tokens[:1].expand(20, 1, 7))
    assert (samples.distance == 0).all()
    assert (samples.log_prob == 0).all()


def test_the_exact_loss_takes_them_and_the_lazy_one_says_why_not():
    target = torch.randint(3, 9, (2, 5), generator=generator(1))
    sampler = EditSampler(0.5, VocabularyPool(9, SPECIAL))
    samples = sampler(target, None, 3, generator()).tokens
    padded = torch.nn.functional.pad(target, (0, sampler.max_insertions), value=-100)
    assert F.sequence_cross_entropy(torch.randn(4, 2, 9, 9), padded, samples, alpha=0.5).isfinite()
    with pytest.raises(ValueError, match=r"samples: got shape \(3, 2, 9\), expected \(3, 2, 5\).*EditSampler.*exact"):
        F.lazy_sequence_cross_entropy(torch.randn(2, 5, 9), target, samples, alpha=0.5)
    hamming = HammingSampler(0.5, VocabularyPool(9, SPECIAL))(target, None, 3, generator()).tokens
    assert F.lazy_sequence_cross_entropy(torch.randn(2, 5, 9), target, hamming, alpha=0.5).isfinite()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"tau": 0.0}, ValueError, "tau: got 0"),
        ({"pool": "batch"}, TypeError, "pool: got str, expected a VocabularyPool"),
        ({"pool": SimilarPool(TABLE)}, TypeError, "pool: got SimilarPool, expected a VocabularyPool"),
        ({"max_insertions": 0}, ValueError, "max_insertions: got 0, expected at least 1"),
        ({"max_insertions": 2.0}, TypeError, "max_insertions: got 2.0"),
        ({"pad": None}, TypeError, "pad: got None"),
    ],
)
def test_settings_are_checked(changes, error, message):
    arguments = {"tau": 1.0, "pool": BatchPool(), **changes}
    with pytest.raises(error, match=message):
        EditSampler(arguments.pop("tau"), arguments.pop("pool"), **arguments)


def test_it_says_what_it_is():
    assert repr(EditSampler(1.0, BatchPool())) == (
        "EditSampler(tau=1, pool=BatchPool(exclude=()), max_insertions=4, pad=-100)"
    )
