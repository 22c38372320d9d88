"""What all samplers have in common: arguments, shapes, dtypes, seeds."""

import numpy as np
import pytest
import torch

from smoothloss import SimilarityTable
from smoothloss.sampling import BatchPool, EditSampler, HammingSampler, ReferencePool, SimilarPool, VocabularyPool
from smoothloss.sampling import samples as samples_module

SPECIAL = (0, 1, 2)
SAMPLERS = [HammingSampler, EditSampler]
POOLS = [VocabularyPool(40, SPECIAL), BatchPool(SPECIAL), ReferencePool(SPECIAL)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
@pytest.mark.parametrize("pool", POOLS)
def test_empty_batches(sampler, shape, pool):
    target, references = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape[0], 2, dtype=torch.int64)
    samples = sampler(1.0, pool)(target, target.new_zeros(shape[0]), 4, generator(), references)
    assert samples.tokens.shape == (4, shape[0], shape[1] + (4 if sampler is EditSampler else 0))
    assert samples.distance.shape == samples.log_prob.shape == samples.lengths.shape == (4, shape[0])


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("pool", POOLS)
def test_equal_seeds_give_equal_samples(sampler, pool):
    target = torch.randint(0, 40, (6, 12), generator=generator(1))
    draw = sampler(0.3, pool)
    first, second, other = (draw(target, None, 5, generator(seed), target.roll(1, 0)) for seed in (7, 7, 8))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first.tokens, other.tokens)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("pool", POOLS)
def test_no_value_is_read_on_the_host(sampler, pool):
    """On the meta device there are none to read: .item(), .cpu() and boolean-mask indexing raise."""
    target = torch.zeros(3, 5, dtype=torch.int64, device="meta")
    samples = sampler(0.5, pool)(target, target[:, 0], 4, references=target)
    assert samples.tokens.shape[:2] == samples.distance.shape == samples.log_prob.shape == samples.lengths.shape


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_the_dtype_of_the_target_is_kept_and_nothing_is_overwritten(sampler, dtype):
    target = torch.randint(0, 30, (2, 6), dtype=dtype, generator=generator(1))
    before = target.clone()
    samples = sampler(3.0, VocabularyPool(30))(target, torch.tensor([6, 3], dtype=dtype), 9, generator(2))
    assert samples.tokens.dtype == dtype
    assert samples.distance.dtype == samples.lengths.dtype == torch.int64
    assert samples.log_prob.dtype == torch.float32
    assert torch.equal(target, before)
    wide = sampler(3.0, VocabularyPool(30))(target.long(), torch.tensor([6, 3]), 9, generator(2))
    assert torch.equal(samples.tokens.long(), wide.tokens)
    assert torch.equal(samples.log_prob, wide.log_prob)


INTEGERS = [torch.int16, torch.int32, torch.int64]


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("size", [2**15, 2**15 + 1, 70_000])
def test_samples_are_as_wide_as_the_pools_tokens(impl, dtype, size):
    """No token wraps around: the samples have the dtype that holds the pool, and are those of an int64 target."""
    target = torch.randint(0, 9, (2, 500), generator=generator(1)).to(dtype)
    vectors = torch.zeros(size, 1)
    vectors[:9] = 1.0  # few have neighbours, but all a share of the tail
    table = SimilarityTable.from_embeddings(vectors, k=1, tau=1.0)
    pools = [VocabularyPool(size), SimilarPool(table), ReferencePool()]
    references = torch.randint(0, size, (2, 4000), generator=generator(2))
    references[:, 0] = size - 1
    for pool in pools:
        sampler = HammingSampler(1e6, pool, impl=impl)
        samples = sampler(target, None, 30, generator(), references if pool is pools[-1] else None)
        wide = sampler(target.long(), None, 30, generator(), references if pool is pools[-1] else None)
        assert torch.equal(samples.tokens.long(), wide.tokens)
        assert int(samples.tokens.min()) >= 0 and int(samples.tokens.max()) < size
        narrow = torch.int16 if size <= 2**15 else torch.int32
        needed = references.dtype if pool is pools[-1] else narrow
        assert samples.tokens.dtype == max(dtype, needed, key=lambda t: t.itemsize)
    samples = EditSampler(0.5, pools[0], max_insertions=1)(target[:, :20], None, 30, generator())
    wide = EditSampler(0.5, pools[0], max_insertions=1)(target[:, :20].long(), None, 30, generator())
    assert torch.equal(samples.tokens.long(), wide.tokens)


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("pad", [-100, 2**15, -(2**31) - 1, 2**31, 2**63 - 1])
def test_samples_are_as_wide_as_the_pad(dtype, pad):
    target = torch.randint(0, 9, (2, 5), generator=generator(1)).to(dtype)
    samples = EditSampler(0.5, VocabularyPool(9), pad=pad)(target, None, 20, generator())
    beyond = samples.tokens[torch.arange(9) >= samples.lengths[..., None]]
    assert (beyond == pad).all() and len(beyond)


@pytest.mark.parametrize("token", [2**31 - 1, 2**31, 2**32 + 3, 2**63 - 1])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_any_token_id_of_int64(sampler, token):
    """Ids that only differ beyond their low 32 bits are different tokens."""
    target = torch.tensor([[3, token, 5], [token, 3, 4]])
    for pool in (BatchPool(), ReferencePool()):
        samples = sampler(1.0, pool)(target, None, 500, generator(), target)
        assert set(samples.tokens.flatten().tolist()) - {-100} == {3, 4, 5, token}
        assert samples.log_prob.isfinite().all()
        low = torch.where(target == token, 9, target)
        other = sampler(1.0, pool)(low, None, 500, generator(), low)
        assert torch.equal(torch.where(samples.tokens == token, 9, samples.tokens), other.tokens)
        torch.testing.assert_close(samples.log_prob, other.log_prob)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("length", [-1, 4, 2**40, -(2**63)])
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_lengths_out_of_range_are_no_lengths(sampler, length, impl):
    target = torch.zeros(2, 3, dtype=torch.int64)
    drawing = HammingSampler(1.0, BatchPool(), impl=impl) if sampler is HammingSampler else sampler(1.0, BatchPool())
    for lengths in ([1, length], [3, length]):
        with pytest.raises(ValueError, match=rf"lengths\[1\]: got {length}, expected 0 to 3, the width of target"):
            drawing(target, torch.tensor(lengths), 1)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("tau", [5e-324, 1e-310, 1e-20, 1e-12, 1e-3, 1e30, 1.7e308])
def test_temperatures_at_the_ends_of_float64(sampler, pool, tau):
    target = torch.randint(0, 40, (3, 6), generator=generator(1))
    samples = sampler(tau, pool)(target, torch.tensor([6, 0, 3]), 50, generator(), target)
    assert samples.log_prob.isfinite().all()
    assert (samples.log_prob <= 1e-6).all()
    if tau <= 1e-3:
        assert (samples.distance == 0).all()
        assert (samples.log_prob == 0).all()
    else:
        assert samples.distance[:, 0].double().mean() > 3


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_seed_is_a_seed_on_every_device(sampler):
    """Where the generator is elsewhere, the seed comes from there; on a device without float64 the CPU draws."""
    target = torch.randint(0, 40, (3, 6), generator=generator(1))
    drawing = sampler(0.3, VocabularyPool(40))
    there = drawing(target.to("meta"), None, 2, generator())
    assert {tensor.device.type for tensor in there} == {"meta"}
    expected, before = drawing(target, None, 2, generator(5)), samples_module._WITHOUT_FLOAT64
    samples_module._WITHOUT_FLOAT64 = ("cpu",)
    try:
        actual = drawing(target, None, 2, generator(5))
    finally:
        samples_module._WITHOUT_FLOAT64 = before
    assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("pool", POOLS)
def test_any_layout_and_default_dtype(sampler, pool):
    target = torch.randint(0, 40, (6, 5), generator=generator(1))
    lengths = torch.tensor([5, 0, 3, 2, 1, 4])
    expected = sampler(0.4, pool)(target, lengths, 3, generator(), target)
    strided = torch.zeros(5, 12, dtype=torch.int64)[:, ::2].T.copy_(target)
    for dtype in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            actual = sampler(0.4, pool)(strided, lengths.repeat_interleave(2)[::2], 3, generator(), strided)
        finally:
            torch.set_default_dtype(torch.float32)
        assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))
        assert [tensor.dtype for tensor in actual] == [tensor.dtype for tensor in expected]


def test_numpys_numbers_are_numbers():
    target = torch.randint(0, 9, (2, 4), generator=generator(1))
    pool = VocabularyPool(np.int64(9), exclude=np.array([1, 2], np.uint8))
    assert pool.exclude == (1, 2)
    for sampler in (
        HammingSampler(np.float32(0.5), pool),
        EditSampler(np.array(0.5), pool, max_insertions=np.int32(2), pad=np.int16(-7)),
    ):
        expected = sampler(target, None, 3, generator())
        actual = sampler(target, None, np.int64(3), generator())
        assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"target": torch.zeros(3, dtype=torch.int64)}, ValueError, "target: got shape"),
        ({"target": torch.zeros(2, 3)}, TypeError, "target: got dtype torch.float32"),
        ({"lengths": torch.zeros(3, dtype=torch.int64)}, ValueError, r"lengths: got shape \(3,\), expected \(2,\)"),
        ({"lengths": torch.zeros(2)}, TypeError, "lengths: got dtype"),
        ({"target": [[1]]}, TypeError, "target: got list, expected a torch.Tensor of integers"),
        ({"target": None}, TypeError, "target: got NoneType"),
        ({"target": np.zeros((2, 3), np.int64)}, TypeError, "target: got ndarray"),
        ({"target": torch.zeros(2, 3, dtype=torch.bool)}, TypeError, "target: got dtype torch.bool"),
        ({"lengths": 2}, TypeError, "lengths: got int, expected a torch.Tensor of integers"),
        ({"lengths": [3, 3]}, TypeError, "lengths: got list"),
        ({"references": [[1]]}, TypeError, "references: got list"),
        ({"generator": 7}, TypeError, "generator: got int, expected a torch.Generator or None"),
        ({"num_samples": None}, TypeError, "num_samples: got None"),
        ({"num_samples": "2"}, TypeError, "num_samples: got '2'"),
        ({"num_samples": True}, TypeError, "num_samples: got True"),
        ({"num_samples": 0}, ValueError, "num_samples: got 0"),
        ({"num_samples": 2.0}, TypeError, "num_samples: got 2.0"),
        ({"references": None}, ValueError, "references: got None"),
        ({"references": torch.zeros(3, 1, dtype=torch.int64)}, ValueError, "references: got shape"),
        ({"references": torch.zeros(2, 1)}, TypeError, "references: got dtype"),
        ({"references": torch.zeros(2, 1, dtype=torch.int64, device="meta")}, ValueError, "references: got device"),
    ],
)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_arguments_of_a_call_are_checked(sampler, changes, error, message):
    target = torch.zeros(2, 3, dtype=torch.int64)
    arguments = {"target": target, "lengths": None, "num_samples": 1, "references": target, **changes}
    with pytest.raises(error, match=message):
        sampler(1.0, ReferencePool())(**arguments)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_settings_are_checked(sampler):
    for tau in ("x", None, True):
        with pytest.raises(TypeError, match="tau: got"):
            sampler(tau, BatchPool())
    for tau in (-1.0, 2**2000):
        with pytest.raises(ValueError, match="tau: got"):
            sampler(tau, BatchPool())
    with pytest.raises(TypeError, match="pool: got NoneType"):
        sampler(1.0, None)


def test_pools_say_their_size():
    assert repr(HammingSampler(0.5, VocabularyPool(9, exclude=[1]))) == (
        "HammingSampler(tau=0.5, pool=VocabularyPool(9, exclude=(1,)))"
    )
    for build, error, message in (
        (lambda: VocabularyPool(2**31), ValueError, "size: got 2147483648, expected at most"),
        (lambda: VocabularyPool("9"), TypeError, "size: got '9'"),
        (lambda: VocabularyPool(None), TypeError, "size: got None"),
        (lambda: BatchPool(exclude=3), TypeError, "exclude: got 3 .int., expected a sequence"),
        (lambda: BatchPool(exclude=None), TypeError, "exclude: got None"),
        (lambda: BatchPool(exclude="ab"), TypeError, "exclude: got 'a'"),
        (lambda: BatchPool(exclude=[1.0]), TypeError, r"exclude: got 1\.0"),
        (lambda: BatchPool(exclude=[2**40]), ValueError, "exclude: got token 1099511627776"),
    ):
        with pytest.raises(error, match=message):
            build()
