"""The pool of neighbours: draws from the similarity rows as the table has them."""

import itertools
import math

import pytest
import torch

from smoothloss import SimilarityTable
from smoothloss.ops import similarity_rows
from smoothloss.sampling import HammingSampler, SimilarPool
from smoothloss.testing import chi_square

SPECIAL = (0, 1)
NO_VECTOR = 2
TAILS = ("uniform", "renormalize", "exact")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_table(size=9, k=3, tau=0.6, tail="uniform", beta=0.2, dim=4):
    vectors = torch.randn(size, dim, generator=generator(size))
    vectors[NO_VECTOR] = 0
    counts = torch.arange(1, size + 1)
    return SimilarityTable.from_embeddings(vectors, k=k, tau=tau, beta=beta, counts=counts, tail=tail, exclude=SPECIAL)


def row_of(table, token, exclude=SPECIAL):
    """R_y as the table has it, without y and the excluded tokens; and how many tokens may be drawn."""
    if table.tail_mode == "exact":
        row = table.dense()[token].clone()
    else:
        row = torch.full((table.num_tokens,), float(table.tail[token]) / table.num_tokens, dtype=torch.float64)
        indices, weights, _ = table.row(token)
        row[indices] += weights.double()
    row[[token, *exclude]] = 0
    return row / row.sum().clamp(min=1e-300), int((row > 0).sum())


@pytest.mark.slow
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("k", [1, 3, 9])
def test_q_sums_to_one_and_is_what_is_drawn(tail, k):
    """All sequences of a tiny vocabulary: a token with neighbours, one without, an excluded one, and another."""
    table, tau, draws = make_table(k=k, tail=tail), 0.7, 200_000
    original = [5, NO_VECTOR, 0, 8]
    samples = HammingSampler(tau, SimilarPool(table, SPECIAL))(torch.tensor([original]), None, draws, generator())
    choices = []
    for token in original:
        row, count = row_of(table, token) if token not in SPECIAL else (None, 0)
        odds = count * math.exp(-1 / tau)
        replaced = [] if not count else [(v, odds / (1 + odds) * float(p)) for v, p in enumerate(row) if p > 0]
        choices.append([(token, 1 / (1 + odds)), *replaced])
    assert len(choices[1]) == len(choices[2]) == 1
    assert len(choices[0]) > 1 or k == 1
    q = {
        tuple(token for token, _ in combination): math.prod(p for _, p in combination)
        for combination in itertools.product(*choices)
    }
    assert sum(q.values()) == pytest.approx(1, abs=1e-9)
    drawn, counts = samples.tokens[:, 0].unique(dim=0, return_counts=True)
    observed = {tuple(sequence): count for sequence, count in zip(drawn.tolist(), counts.tolist(), strict=True)}
    assert set(observed) <= set(q)
    if len(q) > 1:
        assert chi_square([observed.get(sequence, 0) for sequence in q], [draws * p for p in q.values()]) < 1
    for sample in range(0, draws, 5000):
        sequence = tuple(samples.tokens[sample, 0].tolist())
        assert float(samples.log_prob[sample, 0]) == pytest.approx(math.log(q[sequence]), abs=1e-5)
        assert int(samples.distance[sample, 0]) == sum(a != b for a, b in zip(sequence, original, strict=True))


@pytest.mark.parametrize("tail", TAILS)
def test_draws_of_a_larger_table_follow_the_row(tail):
    table = make_table(size=300, k=16, tau=0.3, tail=tail, dim=20)
    target = torch.tensor([[3, 40, 77, 114, 299]])
    exclude = (*SPECIAL, 17, 18, 298)
    samples = HammingSampler(5.0, SimilarPool(table, exclude))(target, None, 100_000, generator())
    for position, token in enumerate(target[0].tolist()):
        column = samples.tokens[:, 0, position]
        observed = torch.bincount(column[column != token], minlength=300)
        row, _ = row_of(table, token, exclude)
        assert chi_square(observed, row * int(observed.sum())) < 1
        other = make_table(size=300, k=16, tau=0.36, tail=tail, dim=20)
        assert chi_square(observed, row_of(other, token, exclude)[0] * int(observed.sum())) > 1


@pytest.mark.parametrize("tail", TAILS)
def test_who_is_drawn(tail):
    """Never the token itself, nor an excluded one; one without a vector through the uniform tail alone."""
    table = make_table(size=20, k=4, tail=tail)
    target = torch.randint(0, 20, (8, 10), generator=generator(1))
    target[:, -1] = -100
    lengths = torch.tensor([0, 1, 2, 3, 5, 8, 10, 10])
    samples = HammingSampler(5.0, SimilarPool(table, (*SPECIAL, 7)))(target, lengths, 3000, generator())
    changed = samples.tokens != target
    assert torch.equal(samples.distance, changed.sum(-1))
    fixed = (
        (target < 0) | torch.isin(target, torch.tensor([0, 1, NO_VECTOR, 7])) | (torch.arange(10) >= lengths[:, None])
    )
    assert not changed[:, fixed].any()
    assert changed.any(0)[~fixed].all()
    drawn = set(samples.tokens[changed].tolist())
    everything = set(range(20)) - {*SPECIAL, 7}
    assert drawn <= everything
    assert (NO_VECTOR in drawn) == (tail == "uniform")
    if tail != "renormalize":
        assert drawn >= everything - {NO_VECTOR}


def test_the_counts_are_the_supports():
    target = torch.tensor([[3, 4, NO_VECTOR, 0]])
    for tail in TAILS:
        table = make_table(size=12, k=5, tail=tail)
        substitutes = SimilarPool(table, SPECIAL).substitutes(target, target >= 0, None)
        expected = [row_of(table, token)[1] for token in target[0].tolist()[:3]]
        assert substitutes.count[0, :3].tolist() == expected
        assert expected[2] == 0
        if tail != "renormalize":
            assert expected[0] == {"uniform": 9, "exact": 8}[tail]


def test_dense_rows_in_many_blocks_are_those_in_one(monkeypatch):
    table = make_table(size=60, k=5, tail="exact", dim=8)
    target = torch.randint(2, 60, (5, 9), generator=generator(1))
    sampler = HammingSampler(1.0, SimilarPool(table, SPECIAL))
    whole = sampler(target, None, 20, generator())
    monkeypatch.setattr(similarity_rows, "BLOCK_BYTES", 7 * 60 * 4)
    blocks = sampler(target, None, 20, generator())
    assert torch.equal(whole.tokens, blocks.tokens)
    torch.testing.assert_close(whole.log_prob, blocks.log_prob)


@pytest.mark.parametrize("tail", TAILS)
def test_a_sharp_table_draws_the_nearest_neighbour(tail):
    """At tau 0.002 all of the row but y itself underflows in float32."""
    vectors = torch.nn.functional.normalize(torch.randn(30, 6, generator=generator(2)), dim=-1)
    table = SimilarityTable.from_embeddings(vectors, k=5, tau=0.002, tail=tail)
    target = torch.arange(30)[None]
    samples = HammingSampler(1.0, SimilarPool(table))(target, None, 500, generator())
    assert samples.log_prob.isfinite().all()
    if tail == "exact":
        nearest = (vectors @ vectors.T).fill_diagonal_(-2).argmax(-1)
        changed = samples.tokens != target
        assert (samples.tokens == nearest)[changed].double().mean() > 0.95
        assert changed.double().mean() > 0.9


def test_a_table_without_neighbours_replaces_nothing():
    for tail in TAILS:
        table = SimilarityTable.from_embeddings(torch.zeros(6, 2), k=2, tau=0.1, tail=tail)
        target = torch.arange(6)[None]
        samples = HammingSampler(50.0, SimilarPool(table))(target, None, 30, generator())
        assert torch.equal(samples.tokens, target.expand(30, 1, 6))
        assert (samples.log_prob == 0).all()


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_empty_batches(tail, shape):
    sampler = HammingSampler(1.0, SimilarPool(make_table(tail=tail)))
    samples = sampler(torch.zeros(shape, dtype=torch.int64), None, 4, generator())
    assert samples.tokens.shape == (4, *shape)


@pytest.mark.parametrize("tail", TAILS)
def test_equal_seeds_give_equal_samples(tail):
    target = torch.randint(0, 40, (6, 12), generator=generator(1), dtype=torch.int32)
    sampler = HammingSampler(1.0, SimilarPool(make_table(size=40, tail=tail), SPECIAL))
    first, second, other = (sampler(target, None, 5, generator(seed)) for seed in (7, 7, 8))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first.tokens, other.tokens)
    assert first.tokens.dtype == torch.int32


@pytest.mark.parametrize("tail", ["uniform", "renormalize"])
def test_no_value_is_read_on_the_host(tail):
    """On the meta device there are none to read."""
    target = torch.zeros(3, 5, dtype=torch.int64, device="meta")
    samples = HammingSampler(0.5, SimilarPool(make_table(tail=tail), SPECIAL))(target, target[:, 0], 4)
    assert samples.tokens.shape == (4, 3, 5)


def test_arguments_are_checked():
    table = make_table()
    with pytest.raises(TypeError, match="table: got str, expected a smoothloss"):
        SimilarPool("table")
    with pytest.raises(ValueError, match="exclude: got token 9, expected 0 <= token < 9"):
        SimilarPool(table, exclude=[9])
    with pytest.raises(IndexError, match="target: got token 9, expected token < 9"):
        HammingSampler(1.0, SimilarPool(table))(torch.tensor([[1, 9]]), None, 1)
    assert "SimilarPool(tau=0.6, tail_mode='uniform', exclude=(0, 1))" in repr(
        HammingSampler(1.0, SimilarPool(table, SPECIAL))
    )


class Given:
    """Numbers as a test wants them, in place of random ones."""

    def __init__(self, share, shape):
        # The same share of every range, just below it.
        self.share = share.expand(shape)
        self.coin = (self.share * 2.0**63).clamp(max=2.0**63 - 1024).to(torch.int64)

    def choose(self, size):
        return torch.minimum((self.share * size).to(torch.int64), (size - 1).clamp(min=0))

    def fraction(self):
        return self.share

    def others(self, purpose):
        return self


@pytest.mark.slow
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("k", [1, 5, 30])
def test_the_largest_numbers_are_within_the_row(tail, k):
    """The last of all choices, and the last in each slot: where rounding would reach into what follows."""
    table = make_table(size=200, k=k, tau=0.3, tail=tail, dim=20)
    target = torch.arange(3, 200)[None]
    substitutes = SimilarPool(table, SPECIAL).substitutes(target, target >= 0, None)
    steps = torch.arange(1, 2 * k + 4, dtype=torch.float64)[:, None, None] / (2 * k + 3)
    share = torch.cat([steps.nextafter(torch.zeros(())), steps * (1 - 1e-9)])
    drawn, log_ratio = substitutes.draw(Given(share, (len(share), *target.shape)))
    for position, token in enumerate(target[0].tolist()):
        row, count = row_of(table, token)
        if count:
            expected = (row[drawn[:, 0, position]] * count).log()
            torch.testing.assert_close(log_ratio[:, 0, position], expected, rtol=1e-5, atol=1e-5)
