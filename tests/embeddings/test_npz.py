"""Word vectors in numpy's archives."""

import numpy as np
import pytest
import torch

from smoothloss.embeddings import load_vectors


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
