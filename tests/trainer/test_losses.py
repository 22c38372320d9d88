from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from smoothloss.rewards import References
from smoothloss.similarity import SimilarityTable
from smoothloss_trainer.config import LossConfig, Recipe, RewardConfig
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.losses import build_loss, decode_samples, encode
from smoothloss_trainer.rewards import SampleWeights
from smoothloss_trainer.tasks import Batch, SequenceModel, task_class
from smoothloss_trainer.vocabulary import PAD, SPECIAL_TOKENS

Make = Callable[..., Recipe]
NAMES = ["mle", "label_smoothing", "tok", "seq", "seq_lazy", "tok_seq", "tok_seq_lazy", "raml"]


@pytest.fixture
def setting(make_recipe: Make) -> tuple[SequenceModel, Batch, SimilarityTable]:
    """Return a model without dropout, a batch with padding, and a table."""
    recipe = make_recipe(model={"dropout": 0.0})
    task = task_class("translation")(recipe)
    torch.manual_seed(1)
    model, size = task.build_model(), len(task.vocabulary)
    vectors = torch.randn(size, 5, generator=torch.Generator().manual_seed(2))
    table = SimilarityTable.from_embeddings(vectors, k=4, tau=0.5, exclude=SPECIAL_TOKENS)
    batch = task.train_batch(range(12))
    assert bool((batch.target == PAD).any())
    return model, batch, table


def config(name: str, **values: Any) -> LossConfig:
    """Return a config that smooths enough to be seen."""
    defaults = {"alpha": 0.4, "token_alpha": 0.3, "tau": 2.0, "num_samples": 3, "label_smoothing": 0.0}
    if name == "label_smoothing":
        defaults["label_smoothing"] = 0.2
    return LossConfig(name=name, **{**defaults, **values})  # type: ignore[arg-type]


def dense_loss(
    model: SequenceModel,
    batch: Batch,
    table: SimilarityTable,
    settings: LossConfig,
    sample_weights: SampleWeights | None = None,
    prior: torch.Tensor | None = None,
) -> torch.Tensor:
    """The definition: one dense target per position, sample and ground truth each on its states (or lazily on h*)."""
    loss = build_loss(settings, table, table.num_tokens)
    generator = torch.Generator().manual_seed(7)
    size = table.num_tokens
    spread = torch.full((size,), 1 / size) if prior is None else prior.float()
    # The stored rows in full: the table is read through its public row(), and its tail spread evenly.
    rows = torch.zeros(size, size)
    for token in range(size):
        indices, weights, tail = table.row(token)
        rows[token, indices] = weights
        rows[token] += tail * spread
    one_hot = torch.eye(size)
    share = {"tok": settings.alpha, "tok_seq": settings.token_alpha, "tok_seq_lazy": settings.token_alpha}
    token_share = share.get(settings.name, 0.0)
    delta = (1 - token_share) * one_hot + token_share * rows
    alpha = {"raml": 1.0, "mle": 0.0, "tok": 0.0, "label_smoothing": 0.0}.get(settings.name, settings.alpha)
    sequences = [batch.target]
    omega = torch.full((settings.num_samples, len(batch.target)), 1 / settings.num_samples)
    if loss.sampler is not None:
        drawn = loss.sampler(batch.target, batch.lengths, settings.num_samples, generator=generator)
        assert bool(drawn.distance.any())
        sequences += list(drawn.tokens)
        if sample_weights is not None:
            omega = sample_weights(drawn, batch).float()
    total = torch.zeros(())
    for number, sequence in enumerate(sequences):
        read = batch.target if settings.is_lazy else sequence
        inputs = torch.cat((torch.ones_like(read[:, :1]), read[:, :-1]), 1)
        log_prob = torch.log_softmax(model.classifier(model.decode(encode(model, batch), inputs)), -1)
        target = (1 - settings.label_smoothing) * delta[sequence] + settings.label_smoothing * spread
        weight = torch.full_like(omega[0], 1 - alpha) if number == 0 else alpha * omega[number - 1]
        total = total - (weight[:, None] * (target * log_prob).sum(-1))[sequence != PAD].sum()
    return total / (batch.target != PAD).sum()


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_equals_its_definition(setting: tuple[SequenceModel, Batch, SimilarityTable], name: str) -> None:
    model, batch, table = setting
    settings = config(name)
    loss = build_loss(settings, table, table.num_tokens)(model, batch, torch.Generator().manual_seed(7))
    gradient = torch.autograd.grad(loss, list(model.parameters()))
    expected = dense_loss(model, batch, table, settings)
    torch.testing.assert_close(loss, expected, rtol=2e-6, atol=0)
    for found, wanted in zip(gradient, torch.autograd.grad(expected, list(model.parameters())), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-7)


@pytest.mark.parametrize("name", ["label_smoothing", "tok", "seq_lazy", "tok_seq"])
def test_a_prior_spreads_the_mass_on_all_classes(
    setting: tuple[SequenceModel, Batch, SimilarityTable], name: str
) -> None:
    model, batch, table = setting
    prior = torch.rand(table.num_tokens, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    prior /= prior.sum()
    settings = config(name, label_smoothing=0.2, prior="unigram")
    loss = build_loss(settings, table, table.num_tokens, prior=prior)
    found = loss(model, batch, torch.Generator().manual_seed(7))
    torch.testing.assert_close(found, dense_loss(model, batch, table, settings, prior=prior), rtol=2e-6, atol=0)
    assert abs(found.item() - dense_loss(model, batch, table, settings).item()) > 1e-4


@pytest.mark.parametrize("references", ["all", "own"])
@pytest.mark.parametrize("normalize", ["samples", "batch"])
@pytest.mark.parametrize("name", ["seq", "seq_lazy", "tok_seq", "tok_seq_lazy"])
def test_rewarded_losses_equal_their_definition(
    setting: tuple[SequenceModel, Batch, SimilarityTable], name: str, normalize: str, references: str
) -> None:
    model, batch, table = setting
    reward = RewardConfig(name="bleu", tau=0.05, normalize=normalize, references=references)  # type: ignore[arg-type]
    settings = config(name, reward=reward)
    packed = References(
        [[row[: int(length)].tolist()] for row, length in zip(batch.target, batch.lengths, strict=True)]
    )
    weights = SampleWeights(settings.reward, packed if references == "all" else None, None, torch.device("cpu"))
    loss = build_loss(settings, table, table.num_tokens, weights)(model, batch, torch.Generator().manual_seed(7))
    expected = dense_loss(model, batch, table, settings, weights)
    torch.testing.assert_close(loss, expected, rtol=2e-6, atol=0)
    parameters = list(model.parameters())
    gradients = zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True)
    for found, wanted in gradients:
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-7)
    assert weights.means()["effective_samples"] < 2.5, "the reward makes a difference"


@pytest.mark.parametrize("reward", ["none", "bleu"])
@pytest.mark.parametrize("name", ["seq", "tok_seq", "raml"])
def test_samples_of_other_lengths_are_scored_as_they_are(
    setting: tuple[SequenceModel, Batch, SimilarityTable], name: str, reward: str
) -> None:
    model, batch, table = setting
    settings = config(name, sampler="edit", tau=0.25, num_samples=50, reward=RewardConfig(name=reward))  # type: ignore[arg-type]
    packed = References(
        [[row[: int(length)].tolist()] for row, length in zip(batch.target, batch.lengths, strict=True)]
    )
    weights = SampleWeights(settings.reward, packed, None, torch.device("cpu")) if reward != "none" else None
    training_loss = build_loss(settings, table, table.num_tokens, weights)
    assert training_loss.sampler is not None
    drawn = training_loss.sampler(batch.target, batch.lengths, 50, torch.Generator().manual_seed(7))
    assert bool((drawn.lengths > batch.lengths).any()) and bool((drawn.lengths < batch.lengths).any())
    loss = training_loss(model, batch, torch.Generator().manual_seed(7))
    torch.testing.assert_close(loss, dense_loss(model, batch, table, settings, weights), rtol=2e-6, atol=0)


def test_entropy_lowers_the_loss_by_the_entropy(setting: tuple[SequenceModel, Batch, SimilarityTable]) -> None:
    model, batch, table = setting
    generator = torch.Generator()
    plain, bonus = (
        build_loss(config("mle", entropy=gamma), None, table.num_tokens)(model, batch, generator) for gamma in (0, 0.5)
    )
    logits = model.classifier(model.decode(encode(model, batch), batch.decoder_inputs))[batch.target != PAD]
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
    torch.testing.assert_close(plain - bonus, 0.5 * entropy)


def test_one_pass_over_samples_equals_one_pass_each(setting: tuple[SequenceModel, Batch, SimilarityTable]) -> None:
    model, batch, _ = setting
    samples = torch.stack((batch.target.flip(0), batch.target.roll(1, 0)))
    memory = encode(model, batch)
    together = decode_samples(model, memory, batch.target, samples)
    assert together.shape[:3] == (3, *batch.target.shape)
    for states, sequence in zip(together, [batch.target, *samples], strict=True):
        inputs = torch.cat((torch.ones_like(sequence[:, :1]), sequence[:, :-1]), 1)
        torch.testing.assert_close(states, model.decode(memory, inputs))


def test_targets_that_share_a_source_are_encoded_once(
    setting: tuple[SequenceModel, Batch, SimilarityTable],
) -> None:
    model, batch, table = setting
    index = torch.tensor([0, 0, 1, 3, 3, 3, 4, 5, 6, 7, 8, 11])
    shared = Batch(batch.source, batch.target, batch.lengths, source_index=index)
    repeated = Batch(tuple(part[index] for part in batch.source), batch.target, batch.lengths)
    loss = build_loss(config("mle"), None, table.num_tokens)
    losses = [loss(model, one, torch.Generator()) for one in (shared, repeated)]
    torch.testing.assert_close(*losses)


def test_pools_draw_from_where_they_say(setting: tuple[SequenceModel, Batch, SimilarityTable]) -> None:
    model, batch, table = setting
    references = torch.full((12, 2), 5)
    batch = Batch(batch.source, batch.target, batch.lengths, references=references)
    loss = build_loss(config("seq_lazy", pool="references", tau=50.0), None, table.num_tokens)
    assert loss.sampler is not None
    drawn = loss.sampler(batch.target, batch.lengths, 5, torch.Generator().manual_seed(1), references).tokens
    changed = drawn != batch.target
    assert bool(changed.any())
    assert set(drawn[changed].tolist()) == {5}
    assert torch.isfinite(loss(model, batch, torch.Generator().manual_seed(1)))


def test_the_similar_pool_draws_neighbours(setting: tuple[SequenceModel, Batch, SimilarityTable]) -> None:
    model, batch, _ = setting
    vectors = torch.randn(setting[2].num_tokens, 5, generator=torch.Generator().manual_seed(2))
    table = SimilarityTable.from_embeddings(vectors, k=3, tau=0.5, tail="renormalize", exclude=SPECIAL_TOKENS)
    loss = build_loss(config("seq_lazy", pool="similar", tau=50.0), table, table.num_tokens)
    assert loss.table is None and loss.sampler is not None, "the table is for the pool alone"
    drawn = loss.sampler(batch.target, batch.lengths, 5, torch.Generator().manual_seed(1)).tokens
    changed = drawn != batch.target
    assert bool(changed.any())
    pairs = zip(batch.target.expand_as(drawn)[changed].tolist(), drawn[changed].tolist(), strict=True)
    assert all(other in table.row(token)[0].tolist() for token, other in pairs)
    assert torch.isfinite(loss(model, batch, torch.Generator().manual_seed(1)))


def test_what_does_not_fit_is_refused(setting: tuple[SequenceModel, Batch, SimilarityTable]) -> None:
    size = setting[2].num_tokens
    with pytest.raises(RecipeError, match=rf"table is of {size} tokens, the target vocabulary {size + 1}"):
        build_loss(config("tok"), setting[2], size + 1)
    with pytest.raises(RecipeError, match="tok_seq needs a similarity table"):
        build_loss(config("tok_seq"), None, size)
    with pytest.raises(RecipeError, match=r"loss\.pool similar needs a similarity table"):
        build_loss(config("seq", pool="similar"), None, size)
    with pytest.raises(RecipeError, match="label_smoothing must be above 0"):
        build_loss(LossConfig(name="label_smoothing"), None, size)
