"""Training GloVe."""

import gzip
import json
from collections import Counter

import numpy as np
import pytest
import torch

from smoothloss.embeddings import _glove, load_vectors, train_glove

CORPUS = [text.split() for text in ("the cat sat on the mat", "a dog", "cat", "", "dog the ? the the dog a mat")]
VOCABULARY = ["<pad>", "the", "cat", "sat", "on", "mat", "a", "dog"]


def naive_cooccurrences(corpus, vocabulary, window):
    total = Counter()
    for sentence in corpus:
        sentence = [vocabulary.index(token) for token in sentence if token in vocabulary]
        for left, right in ((i, j) for i in range(len(sentence)) for j in range(i)):
            if left - right <= window:
                total[sentence[left], sentence[right]] += 1 / (left - right)
                total[sentence[right], sentence[left]] += 1 / (left - right)
    return total


@pytest.mark.parametrize("window", [1, 2, 15])
def test_cooccurrences(window):
    ids = {token: index for index, token in enumerate(VOCABULARY)}
    pairs = _glove.cooccurrences(*_glove.encode(CORPUS, ids), len(VOCABULARY), window)
    actual = dict(
        zip(zip(pairs.rows.tolist(), pairs.columns.tolist(), strict=True), pairs.values.tolist(), strict=True)
    )
    expected = naive_cooccurrences(CORPUS, VOCABULARY, window)
    assert actual.keys() == expected.keys()
    assert all(actual[key] == pytest.approx(value) for key, value in expected.items())


def adagrad_by_the_book(pairs, size, options):
    """One pair after the other, from the same start and in the same order, in float64."""
    generator = torch.Generator().manual_seed(options.seed)
    words, contexts = ((torch.rand((size, options.dim + 2), generator=generator) - 0.5) / options.dim for _ in "wc")
    words, contexts = words.double().numpy(), contexts.double().numpy()
    dim = options.dim
    word_bias, context_bias = words[:, dim].copy(), contexts[:, dim + 1].copy()
    words, contexts = words[:, :dim], contexts[:, :dim]
    squares = [np.ones_like(array) for array in (words, contexts, word_bias, context_bias)]
    losses = []
    for _ in range(options.epochs):
        loss = 0.0
        for pair in torch.randperm(len(pairs.values), generator=generator).tolist():
            i, j, x = int(pairs.rows[pair]), int(pairs.columns[pair]), float(pairs.values[pair])
            difference = words[i] @ contexts[j] + word_bias[i] + context_bias[j] - np.log(x)
            weight = min(1.0, (x / options.x_max) ** options.alpha)
            loss += weight * difference**2 / 2
            step = options.lr * weight * difference
            updates = ((words, i, step * contexts[j]), (contexts, j, step * words[i]))
            for (array, at, gradient), square in zip(
                (*updates, (word_bias, i, step), (context_bias, j, step)), squares, strict=True
            ):
                array[at] -= gradient / np.sqrt(square[at])
                square[at] += gradient**2
        losses.append(loss / len(pairs.values))
    return torch.from_numpy(words + contexts).float(), losses


def test_batches_of_one_are_adagrad_by_the_book():
    ids = {token: index for index, token in enumerate(VOCABULARY)}
    pairs = _glove.cooccurrences(*_glove.encode(CORPUS, ids), len(VOCABULARY), 15)
    options = _glove.Options(dim=4, epochs=6, x_max=2.0, alpha=0.75, lr=0.5, seed=3, batch_size=1)
    expected, expected_losses = adagrad_by_the_book(pairs, len(VOCABULARY), options)
    losses = {}
    vectors = _glove.train(pairs, len(VOCABULARY), options, losses.__setitem__)
    torch.testing.assert_close(vectors, expected, rtol=1e-4, atol=1e-5)
    assert list(losses) == [1, 2, 3, 4, 5, 6]
    assert list(losses.values()) == pytest.approx(expected_losses, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [5, 1000])
def test_a_batch_adds_up_its_pairs(batch_size):
    """Any batch size gets there, and one epoch in one batch is a step of gradient descent (AdaGrad starts at 1)."""
    ids = {token: index for index, token in enumerate(VOCABULARY)}
    pairs = _glove.cooccurrences(*_glove.encode(CORPUS, ids), len(VOCABULARY), 15)
    losses = []
    options = _glove.Options(dim=6, epochs=300, x_max=2.0, alpha=0.75, lr=0.1, seed=0, batch_size=batch_size)
    _glove.train(pairs, len(VOCABULARY), options, lambda epoch, loss: losses.append(loss))
    assert losses[-1] < 1e-3 * losses[0]

    one = options._replace(epochs=1, batch_size=1000)
    generator = torch.Generator().manual_seed(0)
    words, contexts = ((torch.rand((8, 8), generator=generator) - 0.5) / 6 for _ in "wc")
    words[:, 7], contexts[:, 6] = 1.0, 1.0
    words.requires_grad_()
    contexts.requires_grad_()
    difference = (words[pairs.rows] * contexts[pairs.columns]).sum(-1) - pairs.values.log()
    ((pairs.values / 2).pow(0.75).clamp(max=1) * difference**2 / 2).sum().backward()
    expected = (words - 0.1 * words.grad + contexts - 0.1 * contexts.grad)[:, :6].detach()
    torch.testing.assert_close(_glove.train(pairs, 8, one, None), expected, rtol=1e-5, atol=1e-6)


def test_train_glove():
    options = {"dim": 5, "epochs": 3, "seed": 1}
    result = train_glove(iter(CORPUS), VOCABULARY, **options)
    assert result.vectors.shape == (8, 5)
    assert result.missing == ["<pad>"]
    assert (result.vectors[0] == 0).all()
    assert (result.vectors[1:].norm(dim=-1) > 0).all()
    assert result.counts.tolist() == [0, 5, 2, 1, 1, 2, 2, 3]
    assert torch.equal(result.vectors, train_glove(CORPUS, VOCABULARY, **options).vectors)
    assert not torch.equal(result.vectors, train_glove(CORPUS, VOCABULARY, **{**options, "seed": 2}).vectors)


def test_words_of_one_kind_become_neighbours():
    generator = np.random.default_rng(0)
    kinds = [[f"{kind}{i}" for i in range(5)] for kind in "abcd"]
    vocabulary = [word for kind in kinds for word in kind] + ["x", "y", "z", "w"]
    frames = dict(zip("abcd", "xyzw", strict=True))
    corpus = []
    for _ in range(3000):
        kind = kinds[generator.integers(4)]
        word = kind[generator.integers(5)]
        corpus.append([frames[word[0]], word, frames[word[0]]])
    vectors = train_glove(corpus, vocabulary, dim=16, epochs=60).vectors[:20]
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    nearest = (unit @ unit.T - 2 * torch.eye(20)).topk(4).indices
    assert (nearest // 5 == torch.arange(20)[:, None] // 5).double().mean() > 0.9


def test_a_small_vocabulary_does_not_diverge():
    # Steps of the same word that were taken together, hundreds at once, overshot.
    generator = np.random.default_rng(0)
    vocabulary = [f"w{number}" for number in range(60)]
    corpus = [[vocabulary[word] for word in generator.integers(0, 60, 40)] for _ in range(300)]
    losses = []
    found = train_glove(corpus, vocabulary, dim=16, window=40, epochs=8, on_epoch=lambda _, loss: losses.append(loss))
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    assert bool(found.vectors.isfinite().all())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"corpus": ["the cat"]}, TypeError, "corpus: got the string 'the cat'"),
        ({"corpus": [["the"], ["cat", "?"]]}, ValueError, "corpus: got no sentence with two words"),
        ({"corpus": []}, ValueError, "corpus: got no sentence"),
        ({"vocabulary": "the"}, TypeError, "vocabulary: got str"),
        ({"dim": 0}, ValueError, "dim: got 0"),
        ({"window": 0}, ValueError, "window: got 0"),
        ({"epochs": 1.5}, ValueError, "epochs: got 1.5"),
        ({"batch_size": 0}, ValueError, "batch_size: got 0"),
        ({"x_max": 0}, ValueError, "x_max: got 0"),
        ({"alpha": float("inf")}, ValueError, "alpha: got inf"),
        ({"lr": float("nan")}, ValueError, "lr: got nan"),
    ],
)
def test_arguments_of_train_glove_are_checked(changes, error, message):
    arguments = {"corpus": CORPUS, "vocabulary": VOCABULARY, **changes}
    with pytest.raises(error, match=message):
        train_glove(arguments.pop("corpus"), arguments.pop("vocabulary"), **arguments)


@pytest.mark.slow
def test_glove_on_captions_comes_close_to_the_reference_implementation(data_dir):
    """A tenth of the captions and few epochs: enough that neighbours agree far beyond chance."""
    archive = data_dir / "glove" / "glove.coco-val2014-notest.w15.d300.npz"
    with np.load(archive) as stored:
        vocabulary = stored["words"][:500].tolist()
    reference = load_vectors(archive, vocabulary).vectors
    with gzip.open(data_dir / "coco" / "captions_val2014.ptb.json.gz", "rt") as file:
        captions = [caption for captions in json.load(file).values() for caption in captions]
    vectors = train_glove((text.split() for text in captions[::10]), vocabulary, dim=50, epochs=15).vectors
    mine, theirs = (_nearest(matrix) for matrix in (vectors, reference))
    overlap = (mine[:, :, None] == theirs[:, None, :]).any(-1).double().mean()
    assert overlap > 0.25  # chance: 0.02


def _nearest(vectors):
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    return (unit @ unit.T).fill_diagonal_(-2).topk(10).indices
