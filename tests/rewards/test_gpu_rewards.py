"""What only a GPU can show of the rewards: the kernels themselves, streams, graphs, launches, no waiting."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from smoothloss.backends import unavailable
from smoothloss.rewards import Cider, References, bleu_statistics, edit_distance, hamming, rouge_l, sentence_bleu

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available"),
]

Reward = Callable[[Tensor, Tensor, References], Tensor]
COUNTED = {"hamming": hamming, "edit_distance": edit_distance, "bleu_statistics": bleu_statistics, "rouge_l": rouge_l}
BLEU = {
    smoothing: functools.partial(sentence_bleu, smoothing=smoothing, n=n)
    for smoothing, n in (("none", 2), ("floor", 4), ("add-k", 4), ("exp", 8), ("add-k-all", 4), ("coco", 4))
}
CIDER = ("cider-d", "cider")


class Batch(NamedTuple):
    """Candidates ``(L, B, T)`` with lengths ``(L, B)`` and the references of the B inputs."""

    samples: Tensor
    lengths: Tensor
    references: References

    def cuda(self) -> Batch:
        return Batch(self.samples.cuda(), self.lengths.cuda(), self.references.to("cuda"))


def make_batch(
    num_samples: int = 4, inputs: int = 80, width: int = 20, *, seed: int = 0, dtype: torch.dtype = torch.int64
) -> Batch:
    """Return candidates that share n-grams with their references, on the CPU; some inputs have no reference."""
    generator = torch.Generator().manual_seed(seed)

    def sentence(length: int) -> list[int]:
        return torch.randint(0, 12, (length,), generator=generator).mul(70_001).tolist()

    samples = torch.randint(0, 12, (num_samples, inputs, width), generator=generator).mul(70_001).to(dtype)
    lengths = torch.randint(0, width + 1, (num_samples, inputs), generator=generator)
    of_references = range(width % 7, width + 2, width // 3 + 1)
    token_ids = [[sentence(length) for length in of_references] * (number % 3) for number in range(inputs)]
    return Batch(samples, lengths, References(token_ids))


def all_rewards(references: References) -> dict[str, Reward]:
    """Return every reward, CIDEr with the document frequencies of the references."""
    return {**COUNTED, **BLEU, **{variant: Cider(references, variant=variant) for variant in CIDER}}


@pytest.fixture(autouse=True)
def _needs_the_kernels() -> None:
    reason = unavailable("native", "cuda", torch.float32)
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("width", [1, 20, 33, 65, 200])
@pytest.mark.usefixtures("poison")
def test_equal_to_the_cpu(width: int, dtype: torch.dtype) -> None:
    batch = make_batch(width=width, dtype=dtype)
    moved = batch.cuda()
    for name, reward in all_rewards(batch.references).items():
        expected, actual = reward(*batch), reward(*moved)
        assert actual.device == moved.samples.device
        if name in COUNTED and name != "rouge_l":
            assert torch.equal(actual.cpu(), expected), name
        else:
            torch.testing.assert_close(actual.cpu(), expected, rtol=1e-12, atol=0.0, msg=name)


def test_many_candidates() -> None:
    batch = make_batch(100, 1000, 16)
    moved = batch.cuda()
    for name, reward in all_rewards(batch.references).items():
        torch.testing.assert_close(reward(*moved).cpu(), reward(*batch), rtol=1e-12, atol=0.0, msg=name)


def test_any_strides() -> None:
    batch = make_batch().cuda()
    spread = batch._replace(samples=batch.samples.mT.contiguous().mT, lengths=batch.lengths.mT.contiguous().mT.int())
    for reward in all_rewards(batch.references).values():
        assert torch.equal(reward(*spread), reward(*batch))


def test_nothing_outside_is_read() -> None:
    """Lengths are clamped, and ids that no reference can have match none."""
    batch = make_batch().cuda()
    lengths, samples = batch.lengths.clone(), batch.samples.clone()
    lengths[0], lengths[1] = -(2**40), 2**40
    replaced, clamped = samples.clone(), lengths.clamp(0, samples.shape[-1])
    for token, beyond, unknown in ((0, -1, 5), (70_001, 70_001 + 2**32, 6)):
        replaced[samples == token] = unknown
        samples[samples == token] = beyond
    for reward in all_rewards(batch.references).values():
        assert torch.equal(reward(samples, lengths, batch.references), reward(replaced, clamped, batch.references))


def test_the_same_bits_every_time_and_on_a_side_stream() -> None:
    batch = make_batch(width=65).cuda()
    rewards = all_rewards(batch.references)
    expected = {name: reward(*batch) for name, reward in rewards.items()}
    for name, reward in rewards.items():
        for _ in range(5):
            assert torch.equal(reward(*batch), expected[name]), name
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # a kernel that goes to the default stream would run before this has ended
        late = batch._replace(samples=batch.samples + 0, lengths=batch.lengths + 0)
        actual = {name: reward(*late) for name, reward in rewards.items()}
    stream.synchronize()
    for name, scores in actual.items():
        assert torch.equal(scores, expected[name]), name


def test_never_waits_for_the_device(no_host_sync: Callable[[], None]) -> None:
    batch = make_batch().cuda()
    inputs = torch.arange(79, -1, -1, device="cuda")
    rewards = all_rewards(batch.references)
    for reward in rewards.values():
        reward(*batch)  # document frequencies and norms go to the device once
    no_host_sync()
    for reward in rewards.values():
        reward(batch.samples, batch.lengths, batch.references.select(inputs))
        reward(batch.samples[0], None, batch.references)


def test_captured_in_a_graph() -> None:
    first, second = make_batch(seed=1).cuda(), make_batch(seed=2).cuda()
    static = first._replace(samples=first.samples.clone(), lengths=first.lengths.clone())
    rewards = all_rewards(first.references)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for reward in rewards.values():
            reward(*static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = {name: reward(*static) for name, reward in rewards.items()}
    for batch in (second, first):
        static.samples.copy_(batch.samples)
        static.lengths.copy_(batch.lengths)
        graph.replay()
        for name, reward in rewards.items():
            assert torch.equal(captured[name], reward(batch.samples, batch.lengths, first.references)), name


@pytest.mark.filterwarnings("ignore")  # of the profiler
def test_a_reward_is_one_launch(launched: Callable[[Callable[[], object]], list[str]]) -> None:
    batch = make_batch().cuda()
    for name, reward in all_rewards(batch.references).items():
        names = launched(lambda reward=reward: reward(*batch))
        assert len(names) == 1, (name, names)
