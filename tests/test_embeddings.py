"""Reading word vectors, and training GloVe."""

import gzip
import json
from collections import Counter

import numpy as np
import pytest
import torch

from smoothloss.embeddings import _glove
from smoothloss.embeddings import load_vectors, train_glove

GLOVE = "the 0.5 -1 2e-1\na 1 2 3\n. . . 4 5 6\nThe 7 8 9\n"


@pytest.fixture
def file(tmp_path):
    def make(text, name="vectors.txt"):
        path = tmp_path / name
        if path.suffix == ".gz":
            path.write_bytes(gzip.compress(text.encode()))
        else:
            path.write_bytes(text.encode())
        return path

    return make


@pytest.mark.parametrize("name", ["vectors.txt", "vectors.txt.gz"])
@pytest.mark.parametrize("text", [GLOVE, "4 3\n" + GLOVE, GLOVE.replace("\n", " \n"), GLOVE.replace("\n", "\r\n")])
def test_text(file, name, text):
    result = load_vectors(file(text, name), ["a", "zebra", "the", ". . ."])
    expected = torch.tensor([[1.0, 2, 3], [0, 0, 0], [0.5, -1, 0.2], [4, 5, 6]])
    assert torch.equal(result.vectors, expected)
    assert result.vectors.dtype == torch.float32
    assert result.found.tolist() == [True, False, True, True]
    assert result.missing == ["zebra"]
    assert (result.num_found, result.coverage) == (3, 0.75)
    assert result.counts is None


def test_tokens_with_unusual_characters(file):
    result = load_vectors(file("x\u00a0y 1 2\n\u2028 3 4\nété 5 6\n"), ["été", "\u2028", "x\u00a0y"])
    assert result.vectors.tolist() == [[5, 6], [3, 4], [1, 2]]


def test_the_first_of_repeated_entries_counts(file):
    result = load_vectors(file("a 1 2\nb 3 4\na 5 6\n"), ["a", "b", "a"])
    assert result.vectors.tolist() == [[1, 2], [3, 4], [1, 2]]
    assert result.num_duplicates == 1


def test_lower_case_is_a_fallback(file):
    path = file("the 1 2\nparis 3 4\nThe 5 6\n")
    vocabulary = ["The", "Paris", "the", "PARIS"]
    result = load_vectors(path, vocabulary, lowercase_fallback=True)
    assert result.vectors.tolist() == [[5, 6], [3, 4], [1, 2], [3, 4]]
    assert result.num_lowercased == 2
    assert load_vectors(path, vocabulary).missing == ["Paris", "PARIS"]


def test_nothing_found_is_a_result(file):
    result = load_vectors(file(GLOVE), ["q"])
    assert result.vectors.tolist() == [[0, 0, 0]]
    assert result.coverage == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("a\n", "line 1: got 'a'"),
        ("a b c\n", "line 1: got 'a b c'"),
        ("a 1 2\nb 1\n", "line 2: got 1 numbers after 'b', expected 2"),
        ("a 1 2\nb 1 2 3\n", "line 2: got 3 numbers after 'b', expected 2"),
        ("2 3\na 1 2 3\nb 1 2\n", "line 3: got 2 numbers"),
        ("a 1 2\nb 1 x\n", "line 2: could not convert"),
        ("a 1 2\nb 1 nan\n", "line 2: got infinite or NaN"),
    ],
)
def test_bad_text_is_named_by_its_line(file, text, message):
    with pytest.raises(ValueError, match=message):
        load_vectors(file(text), ["a", "b"])


def test_damaged_gzip(file, tmp_path):
    path = file(GLOVE * 100, "vectors.gz")
    for content in (b"plain", path.read_bytes()[:-10], path.read_bytes()[:40] + bytes(40)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="no readable gzip file"):
            load_vectors(path, ["a"])
    with pytest.raises(FileNotFoundError, match="nothing"):
        load_vectors(tmp_path / "nothing", ["a"])


def test_vocabulary_is_checked(file):
    for vocabulary in ("the", {"the"}, ["the", 3]):
        with pytest.raises(TypeError, match="vocabulary: got"):
            load_vectors(file(GLOVE), vocabulary)


def test_npz(tmp_path):
    path = tmp_path / "vectors.npz"
    words, vectors = np.array(["a", "the", "The"]), np.arange(6, dtype=np.float16).reshape(3, 2)
    np.savez(path, words=words, vectors=vectors, counts=np.array([5, 6, 7]))
    result = load_vectors(path, ["the", "q", "A"], lowercase_fallback=True)
    assert result.vectors.tolist() == [[2, 3], [0, 0], [0, 1]]
    assert result.counts.tolist() == [6, 0, 5]
    assert result.counts.dtype == torch.float64
    np.savez(path, words=words, vectors=vectors)
    assert load_vectors(path, ["the"]).counts is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"words": ["a"]}, "expected 'words' and 'vectors'"),
        ({"words": np.array(["a"], dtype=object), "vectors": [[1.0]]}, "allow_pickle"),
        ({"words": [1], "vectors": [[1.0]]}, "expected words of strings"),
        ({"words": ["a"], "vectors": [[1]]}, "vectors of floats"),
        ({"words": ["a", "b"], "vectors": [[1.0]]}, "2 words, 1 vectors"),
        ({"words": ["a"], "vectors": [[1.0]], "counts": [1, 2]}, "the same number n"),
        ({"words": ["a"], "vectors": [[1.0]], "counts": [[1]]}, "the same number n"),
        ({"words": np.zeros(0, dtype="U1"), "vectors": np.zeros((0, 3))}, "holds no vectors"),
        ({"words": ["a"], "vectors": [[np.nan]]}, "infinite or NaN"),
    ],
)
def test_bad_npz(tmp_path, arrays, message):
    path = tmp_path / "vectors.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message):
        load_vectors(path, ["a"])


def test_damaged_npz(tmp_path):
    path = tmp_path / "vectors.npz"
    np.savez(path, words=np.array(["a"]), vectors=np.ones((1, 2)))
    whole = path.read_bytes()
    np.save(tmp_path / "array.npy", np.ones(3))
    for content in (b"", b"text", whole[:-30], (tmp_path / "array.npy").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"no readable \.npz"):
            load_vectors(path, ["a"])


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


def test_real_vectors(data_dir):
    vocabulary = ["<pad>", "the", "dog", "skateboard"]
    glove = load_vectors(data_dir / "glove" / "glove.6B.50d.subset.txt.gz", vocabulary)
    assert glove.vectors.shape == (4, 50)
    assert glove.missing[0] == "<pad>"
    coco = load_vectors(data_dir / "glove" / "glove.coco-val2014-notest.w15.d300.npz", vocabulary)
    assert coco.vectors.shape == (4, 300)
    assert coco.missing == ["<pad>"]
    assert coco.counts[1] > coco.counts[2] > 1000


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
