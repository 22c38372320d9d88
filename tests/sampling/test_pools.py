"""What each pool draws, and what none of them does."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from smoothloss.sampling import BatchPool, EditSampler, HammingSampler, ReferencePool, SimilarPool, VocabularyPool
from smoothloss.testing import chi_square, make_table

POOLS = {
    "vocabulary": lambda: VocabularyPool(9, exclude=[0]),
    "batch": lambda: BatchPool(exclude=[0]),
    "references": lambda: ReferencePool(exclude=[0]),
    "similar": lambda: SimilarPool(make_table(9, k=3), exclude=[0]),
    "similar, dense": lambda: SimilarPool(make_table(9, k=3, tail="exact"), exclude=[0]),
}


def draw(sampler, target):
    references = target if isinstance(sampler.pool, ReferencePool) else None
    return sampler(target, None, 2, torch.Generator().manual_seed(1), references=references)


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, HammingSampler) for name in POOLS), *((name, EditSampler) for name in ("vocabulary", "batch"))],
)
def test_a_pool_keeps_nothing_of_fake_tensors(name, kind):
    target = torch.randint(3, 9, (2, 4), generator=torch.Generator().manual_seed(0))
    expected = draw(kind(0.5, POOLS[name]()), target)
    sampler = kind(0.5, POOLS[name]())
    with FakeTensorMode(allow_non_fake_inputs=True):
        draw(sampler, torch.zeros(2, 4, dtype=torch.long))
    assert torch.equal(draw(sampler, target).tokens, expected.tokens)


SPECIAL = (0, 1, 2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_special_tokens_are_neither_replaced_nor_drawn():
    target = torch.randint(0, 20, (8, 10), generator=generator(3))
    target[:, -1] = -100
    lengths = torch.tensor([0, 1, 2, 3, 5, 8, 10, 10])
    references = torch.cat([target.roll(1, 0), torch.zeros(8, 2, dtype=torch.int64)], dim=1)
    fixed = (target < 3) | (torch.arange(10) >= lengths[:, None])
    for pool in (VocabularyPool(20, exclude=SPECIAL), BatchPool(SPECIAL), ReferencePool(SPECIAL)):
        samples = HammingSampler(5.0, pool)(target, lengths, 2000, generator(), references)
        assert (samples.tokens == target)[:, fixed].all()
        changed = samples.tokens != target
        assert changed.any()
        assert (samples.tokens[changed] >= 3).all()
        assert (samples.tokens[changed] < 20).all()
        assert torch.equal(samples.distance, changed.sum(-1))


def test_each_pool_draws_from_its_own_set():
    target = torch.tensor([[5, 6, 7, 2], [8, 9, 2, 0], [8, 8, 8, 2]])
    lengths = torch.tensor([3, 2, 3])
    references = torch.tensor([[5, 6, 11, 12, -1], [13, 2, -1, 13, 13], [8, -1, 8, -1, -1]])

    def drawn(pool):
        samples = HammingSampler(3.0, pool)(target, lengths, 3000, generator(), references)
        changed = samples.tokens != target
        return [set(samples.tokens[:, b][changed[:, b]].tolist()) for b in range(3)]

    assert drawn(BatchPool(SPECIAL)) == [{5, 6, 7, 8, 9}, {5, 6, 7, 8, 9}, {5, 6, 7, 9}]
    assert drawn(ReferencePool(SPECIAL)) == [{5, 6, 11, 12}, {13}, set()]
    assert drawn(VocabularyPool(10, SPECIAL)) == [set(range(3, 10)), set(range(3, 10)), set(range(3, 10)) - {8}]


def test_a_pool_without_substitutes_changes_nothing():
    target = torch.tensor([[4, 4, 4]])
    empty = torch.full((1, 3), -1)
    for pool, references in (
        (VocabularyPool(5, exclude=(0, 1, 2, 3)), None),
        (VocabularyPool(4, exclude=(0, 1, 2, 3)), None),
        (BatchPool(), None),
        (ReferencePool(), empty),
        (ReferencePool(), empty[:, :0]),
    ):
        samples = HammingSampler(10.0, pool)(target, None, 20, generator(), references)
        assert torch.equal(samples.tokens, target.expand(20, 1, 3))
        assert (samples.distance == 0).all()
        assert (samples.log_prob == 0).all()


@pytest.mark.parametrize("original", [0, 4, 9, 11, 12])
def test_substitutes_are_uniform(original):
    """For an original that is the pool's first, middle, last token, and for ones that are not in it."""
    pool = VocabularyPool(12, exclude=(10, 11)) if original != 12 else VocabularyPool(12)
    target = torch.full((1, 4), original)
    samples = HammingSampler(2.0, pool)(target, None, 50_000, generator())
    drawn = torch.bincount(samples.tokens[samples.tokens != original], minlength=13)
    allowed = [token for token in range(12) if token not in (original, *pool.exclude)]
    if original in pool.exclude:
        assert int(drawn.sum()) == 0
        return
    assert int(drawn.sum()) == int(drawn[allowed].sum())
    assert chi_square(drawn[allowed], torch.full((len(allowed),), int(drawn.sum()) / len(allowed))) < 1


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: VocabularyPool(0), ValueError, "size: got 0"),
        (lambda: VocabularyPool(4.0), TypeError, "size: got 4.0"),
        (lambda: VocabularyPool(4, exclude=[4]), ValueError, "exclude: got token 4"),
        (lambda: BatchPool(exclude=[-1]), ValueError, "exclude: got token -1"),
        (lambda: BatchPool(exclude=["a"]), TypeError, "exclude: got 'a'"),
    ],
)
def test_settings_are_checked(build, error, message):
    with pytest.raises(error, match=message):
        build()
