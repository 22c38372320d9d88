"""The vectors of a vocabulary, and what gathers them from a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch


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


def check_vocabulary(vocabulary: Sequence[str]) -> Sequence[str]:
    """The vocabulary, which must be a sequence of strings.

    Raises:
        TypeError: when it is something else.
    """
    if isinstance(vocabulary, str) or not isinstance(vocabulary, Sequence):
        raise TypeError(f"vocabulary: got {type(vocabulary).__name__}, expected a sequence of strings")
    for index, token in enumerate(vocabulary):
        if not isinstance(token, str):
            raise TypeError(f"vocabulary: got {token!r} ({type(token).__name__}) at {index}, expected strings")
    return vocabulary


class Collector:
    """Gathers what a file has for the tokens of a vocabulary.

    Args:
        vocabulary: The tokens.
        lowercase_fallback: As for :func:`smoothloss.embeddings.load_vectors`.
    """

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
        """Whether the word is in the vocabulary."""
        return word in self.exact or word in self.lowered

    def add(self, word: str, numbers: np.ndarray[Any, Any], count: float | None = None) -> None:
        """Keep the vector of a word that is wanted, unless it has one.

        Raises:
            ValueError: when a number is infinite, NaN, or too large for float32.
        """
        with np.errstate(over="ignore"):
            vector = numbers.astype(np.float32)
        if not np.isfinite(vector).all():
            raise ValueError(f"got infinite or NaN values for {word!r}")
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
        """What was found."""
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
            known = [counts.get(index, 0.0) for index in range(size)]
            all_counts = torch.tensor(known, dtype=torch.float64, device="cpu")  # where the vectors are
        missing = [token for token, there in zip(self.vocabulary, found, strict=True) if not there]
        return WordVectors(
            torch.from_numpy(matrix),
            torch.from_numpy(found),
            missing,
            all_counts,
            len(found_lowercased),
            self.num_duplicates,
        )
