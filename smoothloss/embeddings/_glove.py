"""The arithmetic of GloVe: counting co-occurrences, and AdaGrad on the weighted least squares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

_Ids = np.ndarray[Any, np.dtype[np.int64]]


class Pairs(NamedTuple):
    """Co-occurrences that are not zero."""

    rows: torch.Tensor  # (P,) int64
    columns: torch.Tensor  # (P,) int64
    values: torch.Tensor  # (P,) float32


class Options(NamedTuple):
    """Settings of the training; see smoothloss.embeddings.train_glove."""

    dim: int
    epochs: int
    x_max: float
    alpha: float
    lr: float
    seed: int
    batch_size: int


def encode(corpus: Iterable[Sequence[str]], ids: Mapping[str, int]) -> tuple[_Ids, _Ids]:
    """Token ids of all sentences in a row, without unknown words, and the number of the sentence of each."""
    tokens: list[int] = []
    lengths: list[int] = []
    for sentence in corpus:
        if isinstance(sentence, str):
            raise TypeError(f"corpus: got the string {sentence[:40]!r} as a sentence, expected a sequence of tokens")
        before = len(tokens)
        tokens.extend(ids[token] for token in sentence if token in ids)
        lengths.append(len(tokens) - before)
    return np.array(tokens, dtype=np.int64), np.repeat(np.arange(len(lengths)), lengths)


def cooccurrences(tokens: _Ids, sentences: _Ids, vocabulary_size: int, window: int) -> Pairs:
    """``X_ij``: the sum of 1 / distance over all places where i and j are in one sentence, at most window apart."""
    keys = np.zeros(0, dtype=np.int64)
    values = np.zeros(0, dtype=np.float64)
    for distance in range(1, window + 1):
        together = sentences[distance:] == sentences[:-distance]
        left, right = tokens[:-distance][together], tokens[distance:][together]
        if left.size == 0:
            break
        new, count = np.unique(left * vocabulary_size + right, return_counts=True)
        keys, places = np.unique(np.concatenate([keys, new]), return_inverse=True)
        added = np.concatenate([values, count / distance])
        values = np.bincount(places, weights=added, minlength=keys.size).astype(np.float64)
    # The other direction.
    rows, columns = np.divmod(keys, vocabulary_size)
    keys, places = np.unique(np.concatenate([keys, columns * vocabulary_size + rows]), return_inverse=True)
    values = np.bincount(places, weights=np.concatenate([values, values]), minlength=keys.size).astype(np.float64)
    rows, columns = np.divmod(keys, vocabulary_size)
    return Pairs(torch.from_numpy(rows), torch.from_numpy(columns), torch.from_numpy(values).float())


def train(
    pairs: Pairs, vocabulary_size: int, options: Options, on_epoch: Callable[[int, float], None] | None
) -> torch.Tensor:
    """Minimises the objective over the pairs; ``(V, d)`` word plus context vectors."""
    generator = torch.Generator().manual_seed(options.seed)
    words = _Side(vocabulary_size, options.dim, constant=options.dim + 1, generator=generator)
    contexts = _Side(vocabulary_size, options.dim, constant=options.dim, generator=generator)
    num_pairs = pairs.values.shape[0]
    log_values = pairs.values.log()
    weights = (pairs.values / options.x_max).pow(options.alpha).clamp(max=1.0)
    with torch.no_grad():
        for epoch in range(1, options.epochs + 1):
            loss = 0.0
            for batch in torch.split(
                torch.randperm(num_pairs, generator=generator, device=generator.device), options.batch_size
            ):
                of_words, of_contexts = _group(pairs.rows[batch]), _group(pairs.columns[batch])
                words.load(of_words)
                contexts.load(of_contexts)
                predicted = words.of_each_pair(of_words).mul_(contexts.of_each_pair(of_contexts)).sum(dim=-1)
                difference = predicted - log_values[batch]
                weighted = weights[batch] * difference
                loss += float(weighted.dot(difference)) / 2
                step = weighted * options.lr
                # Both gradients come from the values before the step.
                gradients = words.gradient(of_words, contexts, of_contexts, step)
                contexts.update(of_contexts, *contexts.gradient(of_contexts, words, of_words, step))
                words.update(of_words, *gradients)
            if on_epoch is not None:
                on_epoch(epoch, loss / num_pairs)
    return words.matrix[:, : options.dim] + contexts.matrix[:, : options.dim]


class _Group(NamedTuple):
    """One side's tokens of a batch of P pairs."""

    order: torch.Tensor  # (P,) the pairs sorted by this side's tokens, as places in the pairs' order
    tokens: torch.Tensor  # (U,) distinct tokens, ascending
    local: torch.Tensor  # (P,) place in `tokens` of each pair's token, in the pairs' order
    offsets: torch.Tensor  # (U,) where each token's pairs begin once they are sorted by this side's tokens


def _group(tokens: torch.Tensor) -> _Group:
    tokens, order = tokens.sort(stable=True)
    distinct, local, sizes = torch.unique_consecutive(tokens, return_inverse=True, return_counts=True)
    return _Group(order, distinct, torch.empty_like(local).scatter_(0, order, local), sizes.cumsum(0) - sizes)


class _Side:
    """Word or context vectors and their AdaGrad state.

    The two biases are columns of the matrices: a word's row is ``(w, a, 1)``, a context's ``(c, 1, b)``, so that the
    prediction is one scalar product. The column of ones stays as it is.
    """

    def __init__(self, size: int, dim: int, constant: int, generator: torch.Generator) -> None:
        self.matrix = (torch.rand((size, dim + 2), generator=generator, device=generator.device) - 0.5) / dim
        self.matrix[:, constant] = 1.0
        # Starting at 1, and with squares of whole steps, as the reference implementation has it.
        self.squares = torch.ones_like(self.matrix)
        self.constant = constant
        self.rows = self.matrix

    def load(self, group: _Group) -> None:
        """Takes out the rows of a batch: what follows touches few enough of them to stay in the cache."""
        self.rows = self.matrix.index_select(0, group.tokens)

    def of_each_pair(self, group: _Group) -> torch.Tensor:
        """``(P, d + 2)`` rows, in the pairs' order."""
        return self.rows.index_select(0, group.local)

    def gradient(
        self, group: _Group, other: _Side, others: _Group, step: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """For each distinct token the sums over its pairs of ``step * other`` and of its square, ``(U, d + 2)``."""
        local, step = others.local[group.order], step[group.order]
        first = _sum_of_bags(local, other.rows, group.offsets, step)
        second = _sum_of_bags(local, other.rows.square(), group.offsets, step.square())
        return first, second

    def update(self, group: _Group, gradient: torch.Tensor, squares: torch.Tensor) -> None:
        """``x -= g / sqrt(G); G += g^2``, with the batch's pairs each adding to ``G`` on its own."""
        accumulated = self.squares.index_select(0, group.tokens)
        gradient[:, self.constant] = 0.0
        self.matrix.index_copy_(0, group.tokens, self.rows - gradient.div_(accumulated.sqrt()))
        self.squares.index_copy_(0, group.tokens, accumulated.add_(squares))


def _sum_of_bags(local: torch.Tensor, rows: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """``out[u] = sum of weights[p] * rows[local[p]]`` over the pairs p of bag u: a sparse times a dense matrix."""
    bags: torch.Tensor = torch.nn.functional.embedding_bag(local, rows, offsets, mode="sum", per_sample_weights=weights)
    return bags
