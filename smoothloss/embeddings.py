"""Word vectors for a vocabulary: read from a file, or trained on the task's own text."""

from __future__ import annotations

import gzip
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smoothloss import _glove


@dataclass(frozen=True, eq=False)
class WordVectors:
    """One vector for each token of a vocabulary, as far as there is one.

    Attributes:
        vectors: ``(V, d)`` float32; zeros where no vector was found, which is what
            :meth:`smoothloss.SimilarityTable.from_embeddings` expects.
        found: ``(V,)`` bool.
        missing: The tokens without a vector, in the vocabulary's order.
        counts: ``(V,)`` float64 term counts, 0 for missing tokens; None when the source has none.
        num_lowercased: Tokens found only after lower-casing them.
        num_duplicates: Repeated entries of the source for tokens of the vocabulary; the first one counts.
    """

    vectors: torch.Tensor = field(repr=False)
    found: torch.Tensor = field(repr=False)
    missing: list[str] = field(repr=False)
    counts: torch.Tensor | None = field(repr=False, default=None)
    num_lowercased: int = 0
    num_duplicates: int = 0

    @property
    def num_found(self) -> int:
        """How many tokens have a vector."""
        return self.found.shape[0] - len(self.missing)

    @property
    def coverage(self) -> float:
        """``num_found / V``."""
        return self.num_found / max(1, self.found.shape[0])


def load_vectors(
    path: str | os.PathLike[str], vocabulary: Sequence[str], *, lowercase_fallback: bool = False
) -> WordVectors:
    """Reads the vectors of a vocabulary's tokens: ``vectors[i]`` is the file's entry for ``vocabulary[i]``.

    The format is told by the content. Text, also gzipped (``.gz``): lines ``token x_1 ... x_d`` as GloVe writes them,
    or the same after a header line ``number d`` (word2vec's text format). A token may contain spaces. Otherwise
    ``.npz``: an archive of ``words (n,)``, ``vectors (n, d)`` and, if it likes, ``counts (n,)``.

    Where a word comes twice in the file, the first entry counts; where a token comes twice in the vocabulary, both
    get the vector.

    Args:
        path: The file.
        vocabulary: The tokens; the index is the token id.
        lowercase_fallback: Give a token that is not in the file the vector of its lower-case form.

    Raises:
        FileNotFoundError: There is no such file.
        TypeError: ``vocabulary`` is not a sequence of strings.
        ValueError: The file is empty, damaged, or not of these formats; the message names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: no file of word vectors at {path}")
    collector = _Collector(_checked_vocabulary(vocabulary), lowercase_fallback)
    if path.suffix == ".npz":
        _read_npz(path, collector)
    else:
        _read_text(path, collector)
    return collector.result()


def train_glove(
    corpus: Iterable[Sequence[str]],
    vocabulary: Sequence[str],
    *,
    dim: int = 300,
    window: int = 15,
    epochs: int = 25,
    x_max: float = 10.0,
    alpha: float = 0.75,
    lr: float = 0.05,
    seed: int = 0,
    batch_size: int = 4096,
    on_epoch: Callable[[int, float], None] | None = None,
) -> WordVectors:
    r"""Trains GloVe: minimises ``sum_ij f(X_ij) (w_i . c_j + a_i + b_j - log X_ij)^2`` (Pennington et al. 2014).

    ``X_ij`` adds 1 / distance for each pair of tokens of one sentence at most ``window`` apart, on either side;
    ``f(x) = min(1, (x / x_max)^alpha)``. Words outside the vocabulary are taken out of their sentence first.
    Minimised by AdaGrad over random batches of the pairs that occur, each of which takes its steps together; the
    result is ``w + c``. Runs on CPU and is repeatable for a seed and a number of threads.

    Args:
        corpus: Sentences, each a sequence of tokens. Iterated once.
        vocabulary: The tokens; the index is the token id.
        dim: d, the size of the vectors.
        window: Largest distance between two words that counts.
        epochs: Passes over the pairs.
        x_max: Co-occurrence from which on a pair has full weight.
        alpha: Exponent of the weight.
        lr: Initial step size.
        seed: Of the initial vectors and of the order of the pairs.
        batch_size: Pairs that take a step together; with a small vocabulary fewer do, four times its size at most,
            since many steps of the same word at once overshoot.
        on_epoch: Called after each epoch with its number, from 1, and the mean loss of a pair
            (``f(X) diff^2 / 2``, measured before the step, as the reference implementation reports it).

    Returns:
        The vectors, with the term counts of the corpus. Tokens that never occur have none.

    Raises:
        TypeError: A sentence is a string, or ``vocabulary`` is not a sequence of strings.
        ValueError: An option is out of its range, or no two words of the vocabulary occur together.
    """
    vocabulary = _checked_vocabulary(vocabulary)
    for name, value in (("dim", dim), ("window", window), ("epochs", epochs), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: got {value!r}, expected an integer >= 1")
    for name, number in (("x_max", x_max), ("alpha", alpha), ("lr", lr)):
        if not 0 < number < math.inf:
            raise ValueError(f"{name}: got {number!r}, expected a finite number > 0")
    ids = {token: index for index, token in reversed(list(enumerate(vocabulary)))}
    tokens, sentences = _glove.encode(corpus, ids)
    counts = np.bincount(tokens, minlength=len(vocabulary))
    pairs = _glove.cooccurrences(tokens, sentences, len(vocabulary), window)
    if pairs.values.shape[0] == 0:
        raise ValueError("corpus: got no sentence with two words of the vocabulary, so there is nothing to train on")
    options = _glove.Options(dim, epochs, x_max, alpha, lr, seed, min(batch_size, 4 * len(vocabulary)))
    found = torch.from_numpy(counts > 0)
    vectors = _glove.train(pairs, len(vocabulary), options, on_epoch).masked_fill(~found[:, None], 0.0)
    missing = [token for token, count in zip(vocabulary, counts, strict=True) if count == 0]
    return WordVectors(vectors, found, missing, torch.from_numpy(counts).double())


class _Collector:
    """Gathers what a file has for the tokens of a vocabulary."""

    def __init__(self, vocabulary: Sequence[str], lowercase_fallback: bool) -> None:
        self.vocabulary = vocabulary
        self.exact: dict[str, list[int]] = {}
        self.lowered: dict[str, list[int]] = {}
        for index, token in enumerate(vocabulary):
            self.exact.setdefault(token, []).append(index)
            if lowercase_fallback and token.lower() != token:
                self.lowered.setdefault(token.lower(), []).append(index)
        self.vectors: dict[int, np.ndarray[Any, Any]] = {}
        self.lowercased: dict[int, np.ndarray[Any, Any]] = {}
        self.counts: dict[int, float] = {}
        self.lowercased_counts: dict[int, float] = {}
        self.dim = 0
        self.num_duplicates = 0

    def wants(self, word: str) -> bool:
        return word in self.exact or word in self.lowered

    def add(self, word: str, vector: np.ndarray[Any, Any], count: float | None = None) -> None:
        self.num_duplicates += any(index in self.vectors for index in self.exact.get(word, ()))
        for places, vectors, counts in (
            (self.exact, self.vectors, self.counts),
            (self.lowered, self.lowercased, self.lowercased_counts),
        ):
            for index in places.get(word, ()):
                if index not in vectors:
                    vectors[index] = vector
                    if count is not None:
                        counts[index] = count

    def result(self) -> WordVectors:
        found_lowercased = self.lowercased.keys() - self.vectors.keys()
        vectors = {**self.lowercased, **self.vectors}
        counts = {**self.lowercased_counts, **self.counts}
        size = len(self.vocabulary)
        matrix = np.zeros((size, self.dim), dtype=np.float32)
        found = np.zeros(size, dtype=bool)
        for index, vector in vectors.items():
            matrix[index], found[index] = vector, True
        all_counts = None
        if counts:
            all_counts = torch.tensor([counts.get(index, 0.0) for index in range(size)], dtype=torch.float64)
        missing = [token for token, there in zip(self.vocabulary, found, strict=True) if not there]
        return WordVectors(
            torch.from_numpy(matrix),
            torch.from_numpy(found),
            missing,
            all_counts,
            len(found_lowercased),
            self.num_duplicates,
        )


def _checked_vocabulary(vocabulary: Sequence[str]) -> Sequence[str]:
    if isinstance(vocabulary, str) or not isinstance(vocabulary, Sequence):
        raise TypeError(f"vocabulary: got {type(vocabulary).__name__}, expected a sequence of strings")
    for index, token in enumerate(vocabulary):
        if not isinstance(token, str):
            raise TypeError(f"vocabulary: got {token!r} ({type(token).__name__}) at {index}, expected strings")
    return vocabulary


def _read_npz(path: Path, collector: _Collector) -> None:
    try:
        # Opened here: numpy leaves the file of a damaged archive open.
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("a single array, expected an archive")
            if "words" not in archive or "vectors" not in archive:
                raise ValueError(f"arrays {sorted(archive)}, expected 'words' and 'vectors', and maybe 'counts'")
            words, vectors = archive["words"], archive["vectors"]
            counts = archive.get("counts")
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"path: {path} is no readable .npz of word vectors ({error})") from error
    if words.ndim != 1 or words.dtype.kind != "U" or vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise ValueError(
            f"path: {path} has words {words.dtype}{words.shape} and vectors {vectors.dtype}{vectors.shape}, "
            "expected words of strings (n,) and vectors of floats (n, d)"
        )
    lengths = {len(words), len(vectors), len(words) if counts is None or counts.ndim != 1 else len(counts)}
    if len(lengths) > 1 or (counts is not None and (counts.ndim != 1 or counts.dtype.kind not in "iuf")):
        raise ValueError(
            f"path: {path} has {len(words)} words, {len(vectors)} vectors and "
            f"counts {None if counts is None else counts.shape}, expected the same number n of each"
        )
    if 0 in vectors.shape:
        raise ValueError(f"path: {path} holds no vectors: shape {vectors.shape}")
    if not np.isfinite(vectors).all():
        raise ValueError(f"path: {path} holds infinite or NaN values")
    collector.dim = vectors.shape[1]
    for place, word in enumerate(words.tolist()):
        if collector.wants(word):
            collector.add(word, vectors[place].astype(np.float32), None if counts is None else float(counts[place]))


def _read_text(path: Path, collector: _Collector) -> None:
    dim = 0
    for number, line in _lines(path):
        if number == 1:
            header = line.split(" ")
            if len(header) == 2 and all(part.isdecimal() for part in header):
                dim = int(header[1])
                continue
        where = f"path: {path}, line {number}"
        if not line:
            continue
        dim = dim or _count_numbers(line)
        if dim == 0:
            raise ValueError(f"{where}: got {line[:60]!r}, expected a token and its numbers")
        word, *values = line.rsplit(" ", dim)
        # A token may contain spaces, but a number at its end is one number too many.
        if len(values) < dim or (" " in word and _count_numbers(word) > 0):
            got = len(values) if len(values) < dim else dim + _count_numbers(word)
            raise ValueError(f"{where}: got {got} numbers after {word.split(' ')[0]!r}, expected {dim}")
        if collector.wants(word):
            try:
                vector = np.array(values, dtype=np.float32)
            except ValueError as error:
                raise ValueError(f"{where}: {error}, expected {dim} numbers after {word!r}") from error
            if not np.isfinite(vector).all():
                raise ValueError(f"{where}: got infinite or NaN values for {word!r}")
            collector.add(word, vector)
    if dim == 0:
        raise ValueError(f"path: {path} is empty, expected word vectors")
    collector.dim = dim


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines without their ends; only line feeds end one, and a token may hold any other kind of space."""
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        # Some published files hold tokens cut in the middle of a character.
        with opener(path, "rt", encoding="utf-8", errors="replace", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                yield number, line.rstrip(" \r\n")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"path: {path} is no readable gzip file ({error})") from error


def _count_numbers(line: str) -> int:
    """How many of a line's last fields are numbers, its first field aside."""
    count = 0
    for part in reversed(line.split(" ")[1:]):
        try:
            float(part)
        except ValueError:
            break
        count += 1
    return count
