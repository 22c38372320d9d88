"""What only a GPU can show of samplers: that none waits for the device, and that they draw there what they should."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor

import smoothloss.functional as F
from smoothloss import SimilarityTable
from smoothloss import _compiled as compiled
from smoothloss.rewards import Cider, References
from smoothloss.sampling import (
    BatchPool,
    EditSampler,
    HammingSampler,
    Pool,
    ReferencePool,
    SimilarPool,
    UniformPool,
    VocabularyPool,
    importance_weights,
)
from smoothloss.testing import chi_square, make_table

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


@pytest.mark.parametrize("normalize", ["samples", "batch"])
@pytest.mark.parametrize("shape", [(5, 80), (1, 3), (3000, 2), (0, 4)])
def test_weights_are_those_of_the_cpu(shape: tuple[int, int], normalize: Literal["samples", "batch"]) -> None:
    random = torch.Generator().manual_seed(0)
    scores, log_prob = torch.rand(shape, generator=random).double(), -30 * torch.rand(shape, generator=random)

    def weigh(scores: Tensor, log_prob: Tensor, impl: Literal["auto", "reference"]) -> Tensor:
        return importance_weights(scores, log_prob, tau=0.2, clip=0.9, normalize=normalize, impl=impl)

    for one, other in ((scores, log_prob), (scores.float(), log_prob), (scores.float(), log_prob.half())):
        for impl in ("auto", "reference"):
            actual, again = (weigh(one.cuda(), other.cuda(), impl) for _ in range(2))  # type: ignore[arg-type]
            assert torch.equal(actual, again)
            torch.testing.assert_close(actual.cpu(), weigh(one, other, "reference"))


class Captions:
    """A batch, and the loss of lazy Tok-Seq on samples drawn from a pool; with `normalize` CIDEr weighs them."""

    def __init__(self, pool: Pool, normalize: Literal["samples", "batch"] | None) -> None:
        self.sampler, self.normalize = HammingSampler(0.4, pool), normalize
        self.table = make_table(SIZE).to("cuda")
        self.target = torch.randint(3, SIZE, (8, 10), device="cuda")
        self.lengths, self.inputs = torch.full((8,), 10, device="cuda"), torch.arange(8, device="cuda")
        self.references = References([[row, row[2:]] for row in self.target.tolist()], device="cuda")
        self.cider = Cider(self.references)
        self.cider.prepare(self.references)

    def loss(self, logits: Tensor) -> Tensor:
        samples, weights = self.sampler(self.target, self.lengths, 5, references=self.target), None
        if self.normalize is not None:
            scores = self.cider(samples.tokens, samples.lengths, self.references.select(self.inputs))
            weights = importance_weights(scores, samples.log_prob, tau=0.5, clip=1.0, normalize=self.normalize)
        return F.lazy_sequence_cross_entropy(
            logits, self.target, samples.tokens, weights, alpha=0.4, table=self.table, token_alpha=0.3
        )


STEPS = [("vocabulary", None), ("batch", None), ("references", "batch"), ("batch", "samples"), ("uniform", "batch")]


@pytest.mark.parametrize(("name", "normalize"), STEPS)
def test_a_whole_step_in_one_graph(name: str, normalize: Literal["samples", "batch"] | None) -> None:
    captions, stream = Captions(make_pool(name), normalize), torch.cuda.Stream()
    model = torch.nn.Sequential(torch.nn.Embedding(SIZE, 16), torch.nn.Linear(16, SIZE)).cuda()
    optimizer = torch.optim.Adam(model.parameters(), capturable=True)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=False)
        loss = captions.loss(model(captions.target))
        loss.backward()
        optimizer.step()
        return loss.detach()

    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # which raises where something waits
        loss = step()
    losses = []
    for _ in range(400):
        graph.replay()
        losses.append(loss.clone())
    values = torch.stack(losses).tolist()
    assert len(set(values)) > 390, "each replay draws samples of its own, and trains"
    assert sum(values[-50:]) < 0.9 * sum(values[:50])


@pytest.mark.filterwarnings("ignore")  # of the profiler
@pytest.mark.parametrize(("name", "normalize"), STEPS)
def test_the_launches_of_a_step(
    name: str, normalize: Literal["samples", "batch"] | None, launched: Callable[[Callable[[], object]], list[str]]
) -> None:
    """What `ops/test_launches.py` counts in the emulation: 6 with the draw, by CIDEr 3 more."""
    if compiled.load("_C_cuda")[0] is None:
        pytest.skip("_C_cuda was not built")
    captions, one = Captions(make_pool(name), normalize), torch.ones((), device="cuda")
    logits = torch.randn(8, 10, SIZE, device="cuda", requires_grad=True)
    names = launched(lambda: torch.autograd.grad(captions.loss(logits), logits, one))
    assert len(names) <= (6 if normalize is None else 9), names
