"""What lazy approximates: the same gradient where states do not depend on the tokens that are read, and each its own
objective's where they do."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import smoothloss.functional as F
from smoothloss.rewards import References
from smoothloss.similarity import SimilarityTable
from smoothloss_trainer.config import LossConfig, RewardConfig
from smoothloss_trainer.losses import TrainingLoss, build_loss, decode_samples
from smoothloss_trainer.rewards import SampleWeights
from smoothloss_trainer.tasks import Batch, SequenceModel
from smoothloss_trainer.tasks.captioning.model import CaptioningModel, ShowAndTell
from smoothloss_trainer.vocabulary import EOS, PAD, SPECIAL_TOKENS

WORDS = (4, 5, 6)
SIZE = 7
TRUTH = (5, 4, 6)
TAU = 0.8


class Blind(SequenceModel):
    """States from source and position alone."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed = nn.Linear(3, 5)
        self.positions = nn.Parameter(torch.randn(9, 5))
        self.classifier = nn.Linear(5, SIZE)

    def encode(self, *source: Tensor) -> Tensor:
        return self.mixed(source[0])

    def decode(self, memory: Tensor, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        return torch.tanh(memory[:, None] + self.positions[: inputs.shape[1]])

    def initial_state(self, memory: Tensor) -> Any:
        raise NotImplementedError

    def step(self, tokens: Tensor, state: Any) -> Any:
        raise NotImplementedError


def make_loss(name: str, num_samples: int, reward: RewardConfig | None = None) -> TrainingLoss:
    """Return a loss whose samples come from three words; its table makes words similar."""
    settings = LossConfig(name=name, alpha=0.7, token_alpha=0.4, tau=TAU, pool="vocabulary", num_samples=num_samples)  # type: ignore[arg-type]
    vectors = torch.randn(SIZE, 4, generator=torch.Generator().manual_seed(2))
    table = SimilarityTable.from_embeddings(vectors, k=3, tau=0.5, exclude=SPECIAL_TOKENS)
    weights = None
    if reward is not None:
        settings.reward = reward
        weights = SampleWeights(reward, References([[list(TRUTH), [4, 4]]]), None, torch.device("cpu"))
    return build_loss(settings, table, SIZE, weights)


def flat_gradient(loss: Tensor, model: nn.Module) -> Tensor:
    """Return the gradient of all parameters as one vector, in float64."""
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients]).double()


@pytest.mark.parametrize("reward", [None, RewardConfig(name="bleu", tau=0.2)], ids=["plain", "bleu"])
@pytest.mark.parametrize("name", ["seq", "tok_seq"])
def test_lazy_equals_exact_where_states_do_not_depend_on_samples(name: str, reward: RewardConfig | None) -> None:
    torch.manual_seed(0)
    model = Blind()
    target = torch.tensor([[5, 4, 6, EOS], [4, 4, EOS, PAD], [6, EOS, PAD, PAD]])
    batch = Batch((torch.randn(3, 3),), target, torch.tensor([3, 2, 1]), inputs=torch.tensor([0, 0, 0]))
    gradients = []
    for kind in (name, f"{name}_lazy"):
        loss = make_loss(kind, 6, reward)(model, batch, torch.Generator().manual_seed(4))
        gradients.append(torch.cat([loss.detach().double()[None], flat_gradient(loss, model)]))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


@pytest.fixture
def tiny() -> tuple[SequenceModel, Tensor]:
    """Return a real captioning model of a few units, and one image."""
    torch.manual_seed(3)
    config = CaptioningModel(embedding=4, hidden=5, dropout=0.0)
    model = ShowAndTell(config, 3, SIZE)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.7)  # states that depend on what is read
    return model, torch.randn(1, 3)


def truth_batch(image: Tensor, copies: int) -> Batch:
    """Return a batch that holds the one ground truth so many times."""
    target = torch.tensor([[*TRUTH, EOS]]).expand(copies, -1)
    where = torch.zeros(copies, dtype=torch.int64)
    return Batch((image,), target, torch.full((copies,), 3), source_index=where, inputs=where)


def expected_gradient(loss: TrainingLoss, model: SequenceModel, image: Tensor) -> Tensor:
    """Return the gradient of the objective itself: all sequences of the pool, each with its probability."""
    sequences = torch.tensor([[*words, EOS] for words in itertools.product(WORDS, repeat=3)])[:, None]
    distance = (sequences[..., :3] != torch.tensor(TRUTH)).sum(-1)
    probability = torch.softmax(-distance / TAU, 0)  # (27, 1), the Hamming distribution
    if loss.weights is not None:
        scores = loss.weights.score(sequences, torch.full((27, 1), 3), truth_batch(image, 1))
        probability = torch.softmax(scores / loss.config.reward.tau, 0)
    batch = truth_batch(image, 1)
    memory = model.encode(*batch.source)
    smoothing = {"alpha": loss.config.alpha, "token_alpha": loss.config.token_alpha if loss.table else 0.0}
    options = {**smoothing, "table": loss.table, "linear_bias": model.classifier.bias, "ignore_index": PAD}
    if loss.config.is_lazy:
        function, hidden = F.linear_lazy_sequence_cross_entropy, model.decode(memory, batch.decoder_inputs)
    else:
        function, hidden = F.linear_sequence_cross_entropy, decode_samples(model, memory, batch.target, sequences)
    weight = model.classifier.weight
    return flat_gradient(function(hidden, weight, batch.target, sequences, probability.float(), **options), model)


@pytest.mark.parametrize("name", ["seq", "seq_lazy", "tok_seq", "tok_seq_lazy"])
@pytest.mark.parametrize("reward", [None, RewardConfig(name="bleu", tau=0.3, bleu_order=2)], ids=["plain", "bleu"])
def test_sampled_gradients_converge_to_their_objectives(
    tiny: tuple[SequenceModel, Tensor], name: str, reward: RewardConfig | None
) -> None:
    """Plain samples are unbiased for any L; normalised weights are consistent, so that L is large there."""
    model, image = tiny
    num_samples, copies, draws = (2, 200, 60) if reward is None else (400, 4, 60)
    loss, generator = make_loss(name, num_samples, reward), torch.Generator().manual_seed(9)
    batch = truth_batch(image, copies)
    found = torch.stack([flat_gradient(loss(model, batch, generator), model) for _ in range(draws)])
    expected = expected_gradient(loss, model, image)
    other_name = name.removesuffix("_lazy") if name.endswith("_lazy") else f"{name}_lazy"
    other = expected_gradient(make_loss(other_name, num_samples, reward), model, image)
    # The standard error of the mean gradient's norm; the other objective is many of them away.
    error = float((found.var(0).sum() / draws).sqrt())
    assert float((found.mean(0) - expected).norm()) < 2 * error
    assert float((other - expected).norm()) > 20 * error
