"""Importance weights against their definition, and against expectations that can be enumerated."""

import itertools
import math

import pytest
import torch

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
