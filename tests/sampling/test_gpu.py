"""What only a GPU can show of samplers: that none waits for the device, and that they draw there what they should."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from smoothloss import SimilarityTable
from smoothloss.sampling import (
    BatchPool,
    EditSampler,
    HammingSampler,
    Pool,
    ReferencePool,
    SimilarPool,
    UniformPool,
    VocabularyPool,
)
from smoothloss.testing import chi_square

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available"),
]

SPECIAL = (0, 1, 2)
SIZE = 40
POOLS = ["vocabulary", "batch", "references", "uniform", "renormalize", "exact"]


def make_pool(name: str) -> Pool:
    pools: dict[str, Callable[[], Pool]] = {
        "vocabulary": lambda: VocabularyPool(SIZE, SPECIAL),
        "batch": lambda: BatchPool(SPECIAL),
        "references": lambda: ReferencePool(SPECIAL),
    }
    if name in pools:
        return pools[name]()
    vectors = torch.randn(SIZE, 8, generator=torch.Generator().manual_seed(1))
    return SimilarPool(SimilarityTable.from_embeddings(vectors, k=6, tau=0.3, tail=name), SPECIAL)  # type: ignore[arg-type]


def samplers(name: str) -> list[HammingSampler | EditSampler]:
    pool = make_pool(name)
    edit = [EditSampler(0.4, pool)] if isinstance(pool, UniformPool) else []
    return [HammingSampler(0.4, pool), *edit]


@pytest.mark.parametrize("name", POOLS)
def test_no_sampler_waits_for_the_device(name: str) -> None:
    target = torch.randint(3, SIZE, (8, 10), device="cuda")
    lengths = torch.randint(0, 11, (8,), device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    for sampler in samplers(name):
        sampler(target, lengths, 5, generator, target)  # what is made once for each device
        torch.cuda.set_sync_debug_mode("error")
        try:
            samples = sampler(target, lengths, 5, generator, target)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert samples.tokens.is_cuda
        assert samples.log_prob.isfinite().all()


@pytest.mark.parametrize("name", POOLS)
def test_equal_seeds_give_equal_samples(name: str) -> None:
    target = torch.randint(3, SIZE, (8, 10), device="cuda")
    for sampler in samplers(name):
        first, second = (sampler(target, None, 5, torch.Generator("cuda").manual_seed(3), target) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", POOLS)
def test_the_sequences_of_one_word_are_drawn_as_their_log_prob_says(name: str) -> None:
    target = torch.tensor([[5], [9], [11]], device="cuda")
    for sampler in samplers(name):
        samples = sampler(target, None, 100_000, torch.Generator("cuda").manual_seed(0), target.flatten().expand(3, 3))
        for column in range(3):
            _, index, counts = samples.tokens[:, column].unique(dim=0, return_inverse=True, return_counts=True)
            log_prob = samples.log_prob.new_zeros(len(counts)).scatter_(0, index, samples.log_prob[:, column])
            expected = log_prob.double().exp() * 100_000
            # Those that are rare, together with those that were not drawn at all.
            often = expected >= 10
            observed = torch.cat([counts[often], counts[~often].sum()[None]])
            expected = torch.cat([expected[often], 100_000 - expected[often].sum()[None]])
            assert chi_square(observed.cpu(), expected.clamp(min=0).cpu()) < 1
