from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from smoothloss.rewards import Cider, References, edit_distance, hamming, rouge_l, sentence_bleu
from smoothloss.sampling import EditSampler, HammingSampler, Samples, VocabularyPool
from smoothloss_trainer.config import RewardConfig
from smoothloss_trainer.rewards import SampleWeights
from smoothloss_trainer.tasks import Batch
from smoothloss_trainer.vocabulary import EOS, PAD, SPECIAL_TOKENS

CPU = torch.device("cpu")
# Three training inputs with references of other numbers and lengths; the batch holds the last and the first.
TRAINING = [[[4, 5, 6, 7], [4, 6, 5]], [[9, 9]], [[8, 7, 6, 5, 4], [8, 8, 4]]]
TARGET = torch.tensor([[8, 7, 6, 5, 4, EOS], [4, 6, 5, EOS, PAD, PAD]])
BATCH = Batch((), TARGET, torch.tensor([5, 3]), inputs=torch.tensor([2, 0]))
NAMES = ["hamming", "edit_distance", "bleu", "cider", "rouge_l"]


def draw(num_samples: int, kind: type[HammingSampler | EditSampler] = HammingSampler) -> Samples:
    """Return samples around the ground truths."""
    sampler = kind(0.6, VocabularyPool(10, exclude=SPECIAL_TOKENS))
    return sampler(TARGET, BATCH.lengths, num_samples, torch.Generator().manual_seed(3))


def make(**values: Any) -> SampleWeights:
    """Return the weights of a reward against the training references."""
    references = References(TRAINING)
    return SampleWeights(RewardConfig(**values), references, Cider(references), CPU)


def reward_of(name: str, sentence: list[int], references: list[list[int]]) -> float:
    """Return the reward of one sentence through the library, given as lists."""
    packed = References([references])
    functions = {
        "hamming": hamming,
        "edit_distance": edit_distance,
        "rouge_l": rouge_l,
        "cider": Cider(References(TRAINING)),
        "bleu": lambda *arguments: sentence_bleu(*arguments, n=2, smoothing="exp"),
    }
    return float(functions[name]([sentence], None, packed))  # type: ignore[operator]


@pytest.mark.parametrize("divide_by_q", [True, False])
@pytest.mark.parametrize("kind", [HammingSampler, EditSampler])
@pytest.mark.parametrize("normalize", ["samples", "batch"])
@pytest.mark.parametrize("name", NAMES)
def test_weights_are_rewards_of_the_inputs_references_over_q(
    name: str, normalize: str, kind: type[HammingSampler | EditSampler], divide_by_q: bool
) -> None:
    settings = {"name": name, "tau": 0.7, "clip": 0.4, "normalize": normalize, "divide_by_q": divide_by_q}
    weights = make(**settings, bleu_order=2, bleu_smoothing="exp")
    drawn = draw(4, kind)
    tokens, lengths, log_prob = drawn.tokens, drawn.lengths, drawn.log_prob
    found = weights(drawn, BATCH)
    rewards = [
        [reward_of(name, tokens[row, column, : lengths[row, column]].tolist(), TRAINING[number]) for row in range(4)]
        for column, number in enumerate([2, 0])
    ]
    raw = torch.tensor(
        [
            [
                math.exp(min(value, 0.4) / 0.7 - divide_by_q * float(log_prob[row, column]))
                for row, value in enumerate(values)
            ]
            for column, values in enumerate(rewards)
        ],
        dtype=torch.float64,
    ).T
    expected = raw / raw.sum(0) if normalize == "samples" else raw / raw.mean() / 4
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0.0)
    means = weights.means()
    assert means["reward"] == pytest.approx(sum(map(sum, rewards)) / 8)
    groups = [expected[:, 0], expected[:, 1]] if normalize == "samples" else [expected]
    effective = sum(float(group.sum() ** 2 / group.square().sum()) for group in groups) / 2
    assert means["effective_samples"] == pytest.approx(effective)


@pytest.mark.parametrize("normalize", ["samples", "batch"])
def test_a_constant_reward_gives_equal_weights(normalize: str) -> None:
    settings = RewardConfig(name="constant", normalize=normalize, divide_by_q=False)  # type: ignore[arg-type]
    weights = SampleWeights(settings, None, None, CPU)
    drawn = draw(4)
    assert drawn.log_prob.unique().numel() > 2
    torch.testing.assert_close(weights(drawn, BATCH), torch.full((2, 4), 0.25).double().T)
    assert weights.means() == {"reward": 1.0, "effective_samples": pytest.approx(4.0)}
    settings.divide_by_q = True
    torch.testing.assert_close(weights(drawn, BATCH).log().diff(dim=0), -drawn.log_prob.double().diff(dim=0))


def test_the_samplers_own_reward_gives_equal_weights() -> None:
    # exp(-d / tau) / q is the sampler's normaliser, which does not depend on the sample.
    references = References(
        [[target[: int(length)].tolist()] for target, length in zip(TARGET, BATCH.lengths, strict=True)]
    )
    weights = SampleWeights(RewardConfig(name="hamming", tau=0.6), references, None, CPU)
    batch = Batch((), TARGET, BATCH.lengths, inputs=torch.arange(2))
    found = weights(draw(5), batch)
    torch.testing.assert_close(found, torch.full((5, 2), 0.2).double(), rtol=1e-6, atol=0.0)


def test_sums_are_kept_until_they_are_reset() -> None:
    weights, other = make(name="cider", normalize="batch"), make(name="cider", normalize="batch")
    assert weights.means() == {"reward": 0.0, "effective_samples": 0.0}
    values = []
    for num_samples in (1, 3):
        weights(draw(num_samples), BATCH)
        other.reset()
        other(draw(num_samples), BATCH)
        values.append(other.means())
    assert values[0] != values[1]
    expected = {key: pytest.approx((values[0][key] + values[1][key]) / 2) for key in values[0]}
    assert weights.means() == expected
    other.restore(weights.state())
    assert other.means() == weights.means()
    weights.reset()
    assert weights.state() == [0.0, 0.0, 0.0]


class NoValues(TorchDispatchMode):
    """Refuses what would wait for a GPU: reading a number, and shapes that depend on numbers."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        assert function not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("name", [*NAMES, "constant"])
def test_weighing_reads_no_number(name: str) -> None:
    weights, drawn = make(name=name, normalize="batch"), draw(3)
    with NoValues():
        weights(drawn, BATCH)
    with NoValues(), pytest.raises(AssertionError):
        float(weights.sums[0])


def test_what_is_missing_is_named() -> None:
    nowhere = Batch((), TARGET, BATCH.lengths)
    with pytest.raises(ValueError, match=r"batch\.inputs: got None"):
        make(name="bleu")(draw(2), nowhere)
    with pytest.raises(ValueError, match="cider: got None"):
        SampleWeights(RewardConfig(name="cider"), References(TRAINING), None, CPU)
