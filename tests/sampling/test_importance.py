"""Importance weights against their definition, and against expectations that can be enumerated."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smoothloss.rewards import Cider, References, sentence_bleu
from smoothloss.sampling import EditSampler, HammingSampler, VocabularyPool, effective_sample_size, importance_weights

TOKENS = (3, 4, 5)
TARGET = [3, 4, 5, 4]
CORPUS = References([[TARGET, [4, 5, 3], [3, 3, 4, 4, 5]], [[3, 4]], [[5, 4, 3], [5, 5]], [[4, 4, 5, 5]]])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


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


def test_numpys_numbers_are_numbers():
    scores, log_prob = torch.rand(3, 2), -torch.rand(3, 2)
    expected = importance_weights(scores, log_prob, tau=0.5, clip=0.25)
    assert torch.equal(importance_weights(scores, log_prob, tau=np.float32(0.5), clip=np.array(0.25)), expected)


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
    expected = 6 * 8 * math.exp(-1 / 0.4) / (1 + 8 * math.exp(-1 / 0.4))
    assert float((weights * samples.distance).sum()) == pytest.approx(expected, rel=0.01)


ENDS = [-math.inf, -1e300, -3.0, 0.0, 1e-300, 2.0, 1e300, math.inf]


def in_log_space(scores, log_prob, tau):
    """One input's weights from its list of scores, in fractions of any size: the limit where they are infinite."""
    top = max(scores)
    exponents = []
    for score, log_q in zip(scores, log_prob, strict=True):
        if score == top:
            exponents.append(Fraction(-log_q))
        elif math.isinf(score) or math.isinf(top):
            exponents.append(None)
        else:
            exponents.append((Fraction(score) - Fraction(top)) / Fraction(tau) - Fraction(log_q))
    highest = max(exponent for exponent in exponents if exponent is not None)
    terms = [0.0 if x is None or x - highest < -700 else math.exp(float(x - highest)) for x in exponents]
    return [term / sum(terms) for term in terms]


@given(
    st.integers(1, 5).flatmap(
        lambda n: st.tuples(
            st.lists(st.sampled_from(ENDS), min_size=n, max_size=n),
            st.lists(st.sampled_from([-1e4, -3.5, 0.0]), min_size=n, max_size=n),
        )
    ),
    st.sampled_from([5e-324, 1e-30, 0.1, 1.0, 1e30, 1.7e308]),
    st.sampled_from([torch.float32, torch.float64]),
)
@settings(deadline=None)
def test_weights_at_the_ends_of_the_numbers(case, tau, dtype):
    scores, log_prob = (torch.tensor(values, dtype=torch.float64)[:, None].to(dtype) for values in case)
    weights = importance_weights(scores, log_prob, tau=tau)
    assert weights.dtype == dtype
    # Beyond 1e37 and below 1e-37 a temperature is as good as that.
    expected = in_log_space(scores[:, 0].tolist(), log_prob[:, 0].tolist(), min(max(tau, 1e-37), 1e37))
    error = 2e-3 if dtype == torch.float32 else 1e-9  # of log_prob itself, at 1e4
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(weights[:, 0].double(), expected, rtol=error, atol=1e-30)
    # One input is its batch; twice the same inputs share it.
    twice = importance_weights(scores.expand(-1, 2), log_prob.expand(-1, 2), tau=tau, normalize="batch")
    torch.testing.assert_close(twice[:, :1], weights, rtol=1e-5, atol=1e-30)
    torch.testing.assert_close(twice[:, 1:], weights, rtol=1e-5, atol=1e-30)


def test_what_has_no_reward_and_no_probability_has_no_weight():
    scores, log_prob = torch.tensor([[0.0], [-math.inf]]), torch.tensor([[-1.0], [-math.inf]])
    assert importance_weights(scores, log_prob, tau=1.0).tolist() == [[1.0], [0.0]]
    assert importance_weights(scores, log_prob, tau=1.0, clip=-math.inf).isfinite().all()
    assert importance_weights(torch.full((1, 3), -math.inf), torch.zeros(1, 3), tau=1.0).tolist() == [[1.0] * 3]
    for shape in ((0, 3), (3, 0), (0, 0)):
        for normalize in ("samples", "batch"):
            assert (
                importance_weights(torch.zeros(shape), torch.zeros(shape), tau=1.0, normalize=normalize).shape == shape
            )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"scores": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "scores: got dtype"),
        ({"log_prob": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "log_prob: got dtype"),
        ({"scores": torch.zeros(3, 2)}, ValueError, "scores, log_prob: got shapes"),
        ({"scores": [[1.0]]}, TypeError, "scores: got list, expected a torch.Tensor"),
        ({"log_prob": None}, TypeError, "log_prob: got NoneType"),
        ({"log_prob": torch.zeros(2, 3, device="meta")}, ValueError, "log_prob: got a tensor on meta, expected cpu"),
        ({"tau": 0.0}, ValueError, "tau: got 0"),
        ({"tau": "x"}, TypeError, "tau: got 'x'"),
        ({"tau": None}, TypeError, "tau: got None"),
        ({"tau": math.inf}, ValueError, "tau: got inf"),
        ({"clip": "x"}, TypeError, "clip: got 'x'"),
        ({"normalize": None}, ValueError, "normalize: got None"),
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
    with pytest.raises(TypeError, match="weights: got list"):
        effective_sample_size([[1.0]])
    with pytest.raises(TypeError, match=r"weights: got dtype torch\.int64"):
        effective_sample_size(torch.ones(2, 2, dtype=torch.int64))


def bleu(candidates, lengths, references):
    return sentence_bleu(candidates, lengths, references, smoothing="add-k-all")


REWARDS = {"bleu": (bleu, 0.1), "cider": (Cider(CORPUS), 1.5), "clipped cider": (Cider(CORPUS), 0.3)}


def scored(reward, tokens, lengths):
    return reward(tokens, lengths, CORPUS.select(torch.zeros(tokens.shape[-2], dtype=torch.int64)))


def exact_expectations(reward, tau, clip, sequences):
    """The mean of the statistics under exp(reward / tau) over all sequences."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    tokens = torch.tensor([[*sequence, *[0] * (max(lengths) - len(sequence))] for sequence in sequences])
    scores = scored(reward, tokens, lengths)
    return statistics(scores, tokens, lengths) @ (scores.clamp(max=clip) / tau).softmax(0)


def statistics(scores, tokens, lengths):
    """The reward, the length, and how often each token occurs."""
    inside = torch.arange(tokens.shape[-1]) < lengths[..., None]
    occurrences = [((tokens == token) & inside).sum(-1) for token in TOKENS]
    return torch.stack([scores, lengths.double(), *(count.double() for count in occurrences)])


@pytest.mark.slow
@pytest.mark.parametrize("normalize", ["samples", "batch"])
@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("sampler", ["hamming", "edit"])
def test_weighted_samples_have_the_expectations_of_the_reward(sampler, name, normalize):
    """All sequences of three tokens, weighted by BLEU or CIDEr: of the ground truth's length, or up to two longer.

    `normalize="batch"` has one sample for each of many copies of the ground truth.
    """
    (reward, tau), clip = REWARDS[name], 1.0 if name == "clipped cider" else math.inf
    if sampler == "hamming":
        drawing, widths = HammingSampler(1.5, VocabularyPool(6, exclude=(0, 1, 2))), [4]
    else:
        drawing, widths = EditSampler(0.8, VocabularyPool(6, exclude=(0, 1, 2)), max_insertions=2, pad=0), range(7)
    sequences = [sequence for width in widths for sequence in itertools.product(TOKENS, repeat=width)]
    exact = exact_expectations(reward, tau, clip, sequences)
    draws = 30_000
    copies = draws if normalize == "batch" else 1
    samples = drawing(torch.tensor([TARGET]).expand(copies, 4), None, draws // copies, generator())
    scores = scored(reward, samples.tokens, samples.lengths)
    clipping = None if clip == math.inf else clip
    weights = importance_weights(scores, samples.log_prob, tau=tau, normalize=normalize, clip=clipping).flatten()
    values = statistics(scores, samples.tokens, samples.lengths).flatten(1)
    weights = weights / copies
    # Five standard errors of the ratio estimator.
    error = 5 * ((values - exact[:, None]).square() @ weights.square()).sqrt() + 1e-9
    assert (error < 0.1 * exact).all()
    assert ((values @ weights - exact).abs() < error).all()
    assert not ((values.mean(1) - exact).abs() < error).all(), "unweighted samples should not pass"
    assert 100 < float(effective_sample_size(weights[:, None])) < draws
