"""Rows of segments hold exactly the distribution of the similarity row, in integers."""

import pytest
import torch

from smoothloss import SimilarityTable
from smoothloss.sampling.philox import COIN_BITS
from smoothloss.sampling.segments import SegmentRows


def make_rows(size, k, tail):
    generator = torch.Generator().manual_seed(size)
    vectors = torch.randn(size, 8, generator=generator)
    table = SimilarityTable.from_embeddings(vectors, k=k, tau=0.3, tail=tail, exclude=(0, 1))
    allowed = torch.rand(size, generator=generator) < 0.9
    return table, allowed, SegmentRows.of(table, allowed)


def drawn_from(rows, token):
    """The probability of each token, and the log ratio that a draw of it is said to have."""
    size, width = rows.num_substitutes.shape[0], rows.segments.shape[1]
    threshold, other, first, length, log_ratio = rows.at(token * width + torch.arange(width))
    own = threshold.double() / 2.0**COIN_BITS
    mass = torch.zeros(width, dtype=torch.float64).index_add_(0, torch.arange(width), own / width)
    mass.index_add_(0, torch.arange(width) + other, (1 - own) / width)
    probability, ratios = torch.zeros(size + 1, dtype=torch.float64), torch.full((size + 1,), torch.nan).double()
    for segment in range(width):
        tokens = rows.by_rank[int(first[segment]) : int(first[segment]) + int(length[segment])]
        probability[tokens] += mass[segment] / max(len(tokens), 1)
        ratios[tokens] = log_ratio[segment]
        assert len(tokens) > 0 or mass[segment] < 1e-12
    return probability[:size], ratios[:size]


@pytest.mark.parametrize("tail", ["uniform", "renormalize"])
@pytest.mark.parametrize(("size", "k"), [(3, 1), (50, 7), (300, 64)])
def test_the_rows_hold_the_table(tail, size, k):
    table, allowed, rows = make_rows(size, k, tail)
    for token in range(0, size, max(1, size // 40)):
        expected = torch.full((size,), float(table.tail[token]) / size, dtype=torch.float64)
        indices, weights, _ = table.row(token)
        expected[indices] += weights.double()
        expected[token] = 0
        expected[~allowed] = 0
        assert int(rows.num_substitutes[token]) == int((expected > 0).sum())
        if expected.sum() == 0:
            continue
        probability, ratios = drawn_from(rows, token)
        torch.testing.assert_close(probability, expected / expected.sum(), rtol=1e-9, atol=1e-13)
        assert (probability[expected == 0] == 0).all()
        some = expected > 0
        counted = (probability[some] * rows.num_substitutes[token]).log()
        torch.testing.assert_close(ratios[some], counted, rtol=1e-9, atol=1e-9)
