"""What all samplers have in common: arguments, shapes, dtypes, seeds."""

import pytest
import torch

from smoothloss.sampling import BatchPool, EditSampler, HammingSampler, ReferencePool, VocabularyPool

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


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"target": torch.zeros(3, dtype=torch.int64)}, ValueError, "target: got shape"),
        ({"target": torch.zeros(2, 3)}, TypeError, "target: got dtype torch.float32"),
        ({"lengths": torch.zeros(3, dtype=torch.int64)}, ValueError, r"lengths: got shape \(3,\), expected \(2,\)"),
        ({"lengths": torch.zeros(2)}, TypeError, "lengths: got dtype"),
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
