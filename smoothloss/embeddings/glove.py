"""GloVe, trained on the task's own text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch

from smoothloss.embeddings import _glove
from smoothloss.embeddings.vectors import WordVectors, check_vocabulary


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
    vocabulary = check_vocabulary(vocabulary)
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
