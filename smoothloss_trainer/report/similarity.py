"""Some words of a similarity table with their neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from smoothloss.similarity import SimilarityTable
from smoothloss_trainer.report.runs import RunResults
from smoothloss_trainer.vocabulary import Vocabulary

NEIGHBOURS_SHOWN = 6


@dataclass(frozen=True)
class Neighbour:
    """A similar word, its share of the mass, and the width of its bar (the longest is 1)."""

    word: str
    mass: float
    width: float


@dataclass(frozen=True)
class Word:
    """A word, how often it was seen in training, and where the mass of its row goes."""

    word: str
    seen: int
    own: float
    neighbours: list[Neighbour]
    kept: float


@dataclass(frozen=True)
class Similarity:
    """What is shown of a run's similarity table."""

    result: RunResults
    table: SimilarityTable
    words: list[Word]


def read_similarity(results: Sequence[RunResults], words: Sequence[str]) -> Similarity | None:
    """The table of the first run that has one.

    Args:
        results: The runs.
        words: Words to show; left out, some are taken from the whole range of frequencies.
    """
    for result in results:
        table = result.table
        if table is not None:
            vocabulary = result.vocabularies["target"]
            chosen = [word for word in words if word in vocabulary.tokens] or _some_words(vocabulary, table)
            return Similarity(result, table, _words(table, vocabulary, chosen))
    return None


def _some_words(vocabulary: Vocabulary, table: SimilarityTable) -> list[str]:
    """Up to ten words with neighbours, from frequent to rare, evenly by logarithm of the rank, function words aside."""
    known = [token for token in range(len(vocabulary)) if bool(table.has_neighbours[token])]
    ranks = (
        sorted({round(rank) - 1 for rank in np.geomspace(10 if len(known) > 100 else 1, len(known), 10)})
        if known
        else []
    )
    return [vocabulary.words[known[rank]] for rank in ranks]


def _words(table: SimilarityTable, vocabulary: Vocabulary, words: Sequence[str]) -> list[Word]:
    rows = [_row_mass(table, vocabulary.tokens[word]) for word in words]
    own = [mass.pop(vocabulary.tokens[word], 0.0) for word, mass in zip(words, rows, strict=True)]
    shown = [list(mass.items())[:NEIGHBOURS_SHOWN] for mass in rows]
    longest = max((value for row in shown for _, value in row), default=0.0) or 1.0
    found = []
    for word, self_mass, row in zip(words, own, shown, strict=True):
        token = vocabulary.tokens[word]
        neighbours = [Neighbour(vocabulary.words[index], value, value / longest) for index, value in row]
        found.append(Word(word, vocabulary.counts[token], self_mass, neighbours, float(table.kept_mass[token])))
    return found


def _row_mass(table: SimilarityTable, token: int) -> dict[int, float]:
    """Mass of a row's kept tokens, the largest first: the entry and, with a uniform tail, the share of the tail."""
    share = float(table.tail[token]) / table.num_tokens if table.tail_mode == "uniform" else 0.0
    entries = zip(table.indices[token].tolist(), table.weights[token].tolist(), strict=True)
    return {index: weight + share for index, weight in entries if index >= 0}
