from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest
import torch

from smoothloss.similarity import SimilarityTable
from smoothloss_trainer.config import LossConfig, Recipe
from smoothloss_trainer.consistency import twice
from smoothloss_trainer.losses import build_loss, decode, decode_samples, encode
from smoothloss_trainer.tasks import Batch, SequenceModel, task_class
from smoothloss_trainer.vocabulary import PAD

Make = Callable[..., Recipe]
WEIGHT, SMOOTHING = 0.7, 0.1
NAMES = ["label_smoothing", "tok", "seq", "seq_lazy", "tok_seq", "tok_seq_lazy", "raml"]


@pytest.fixture
def setting(make_recipe: Make) -> tuple[SequenceModel, Batch, SimilarityTable]:
    """Return a model with dropout, a batch with padding, and a table."""
    task = task_class("translation")(make_recipe(model={"dropout": 0.4}))
    torch.manual_seed(1)
    model, size = task.build_model(), len(task.vocabulary)
    vectors = torch.randn(size, 5, generator=torch.Generator().manual_seed(2))
    return model, task.train_batch(range(12)), SimilarityTable.from_embeddings(vectors, k=size - 1, tau=0.5)


def config(name: str, classes: int) -> LossConfig:
    """Return a config that smooths enough to be seen."""
    return LossConfig(
        name=name,  # type: ignore[arg-type]
        alpha=0.4,
        token_alpha=0.3,
        tau=2.0,
        num_samples=2,
        label_smoothing=SMOOTHING,
        consistency=WEIGHT,
        consistency_classes=classes,
    )


def dense_loss(model: SequenceModel, batch: Batch, table: SimilarityTable, settings: LossConfig) -> torch.Tensor:
    """The definition, with dense targets: each sequence of both passes against its own target and the other's p."""
    both, loss = twice(batch), build_loss(settings, table, table.num_tokens)
    torch.manual_seed(3)
    token_share = {"tok": settings.alpha, "tok_seq": settings.token_alpha, "tok_seq_lazy": settings.token_alpha}
    share = token_share.get(settings.name, 0.0)
    delta = (1 - share) * torch.eye(table.num_tokens) + share * table.dense().float()
    if loss.sampler is None:
        shares, sequences, hidden = [1.0], both.target[None], decode(model, both)[None]
    else:
        alpha = 1.0 if settings.name == "raml" else settings.alpha
        generator = torch.Generator().manual_seed(7)
        drawn = loss.sampler(batch.target, batch.lengths, settings.num_samples, generator=generator)
        samples = torch.cat((drawn.tokens, drawn.tokens), 1)
        shares = [1 - alpha] + [alpha / settings.num_samples] * settings.num_samples
        sequences = torch.cat((both.target[None], samples))
        if settings.is_lazy:
            hidden = decode(model, both).expand(len(sequences), -1, -1, -1)
        else:
            lengths = (both.lengths + 1).repeat(len(sequences))
            hidden = decode_samples(model, encode(model, both), both.target, samples, lengths)
    log_prob = torch.log_softmax(model.classifier(hidden), -1)
    other = log_prob.detach().exp().unflatten(1, (2, -1)).flip(1).flatten(1, 2)
    q = (1 - SMOOTHING) * delta[sequences] + SMOOTHING / table.num_tokens + WEIGHT * other
    total = -(torch.tensor(shares)[:, None, None] * (q * log_prob).sum(-1))[sequences != PAD].sum()
    return total / (both.target != PAD).sum()


@pytest.mark.parametrize("name", NAMES)
def test_both_passes_are_targets_of_each_other(
    setting: tuple[SequenceModel, Batch, SimilarityTable], name: str
) -> None:
    model, batch, table = setting
    settings = config(name, table.num_tokens)
    loss = build_loss(settings, table, table.num_tokens)
    torch.manual_seed(3)
    found = loss(model, batch, torch.Generator().manual_seed(7))
    expected = dense_loss(model, batch, table, settings)
    torch.testing.assert_close(found, expected, rtol=5e-6, atol=0)
    gradients = (torch.autograd.grad(value, list(model.parameters())) for value in (found, expected))
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=5e-7)


def test_rows_of_a_table_with_an_exact_tail_go_with_it(setting: tuple[SequenceModel, Batch, SimilarityTable]) -> None:
    model, batch, table = setting
    size = table.num_tokens
    vectors = torch.randn(size, 5, generator=torch.Generator().manual_seed(2))
    table = SimilarityTable.from_embeddings(vectors, k=3, tau=0.5, tail="exact")
    settings = config("tok", size)
    torch.manual_seed(3)
    found = build_loss(settings, table, size)(model, batch, torch.Generator())
    torch.testing.assert_close(found, dense_loss(model, batch, table, settings), rtol=5e-6, atol=0)


def test_what_is_not_told_apart_is_spread_evenly(setting: tuple[SequenceModel, Batch, SimilarityTable]) -> None:
    model, batch, table = setting
    model.eval()
    target = twice(batch).target
    log_prob = torch.log_softmax(model.classifier(decode(model, twice(batch))), -1)
    top, known = log_prob.exp().topk(3)
    other = torch.zeros_like(log_prob).scatter(-1, known, top) + (1 - top.sum(-1, keepdim=True)) / table.num_tokens
    q = (1 - SMOOTHING) * torch.eye(table.num_tokens)[target] + SMOOTHING / table.num_tokens + WEIGHT * other
    expected = -(q * log_prob).sum(-1)[target != PAD].mean()
    found = build_loss(config("mle", 3), None, table.num_tokens)(model, batch, torch.Generator())
    torch.testing.assert_close(found, expected, rtol=5e-6, atol=0)


def test_the_loss_has_logits_that_autocast_does_not_round(
    setting: tuple[SequenceModel, Batch, SimilarityTable],
) -> None:
    """Of the other pass's prediction the roundings are in both, so that the states and the rest of the target tell."""
    model, batch, table = setting
    model.eval()
    settings = LossConfig(label_smoothing=SMOOTHING, consistency=1e-9, consistency_classes=3)
    plain = LossConfig(label_smoothing=SMOOTHING)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = (
            build_loss(each, None, table.num_tokens)(model, batch, torch.Generator()) for each in (settings, plain)
        )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("sampler", ["hamming", "edit"])
@pytest.mark.parametrize("name", NAMES)
def test_passes_that_agree_change_no_gradient(
    setting: tuple[SequenceModel, Batch, SimilarityTable], name: str, sampler: Literal["hamming", "edit"]
) -> None:
    """What two passes read has to be the same: samples of their own would make them disagree without dropout."""
    model, batch, table = setting
    if sampler == "edit" and name not in ("seq", "tok_seq", "raml"):
        pytest.skip("draws no samples of other lengths")
    model.eval()
    size = table.num_tokens
    gradients = []
    for weight in (0.0, WEIGHT):
        settings = replace(config(name, size), consistency=weight, sampler=sampler, pool="vocabulary")
        value = build_loss(settings, table, size)(model, batch, torch.Generator().manual_seed(7))
        gradients.append(torch.autograd.grad(value, list(model.parameters())))
    for without, with_it in zip(*gradients, strict=True):
        torch.testing.assert_close(without, with_it, rtol=1e-4, atol=5e-7)


def test_a_batch_is_made_twice_with_its_sources_and_references(
    setting: tuple[SequenceModel, Batch, SimilarityTable],
) -> None:
    batch = setting[1]
    rows = len(batch.target)
    images = torch.arange(4.0)[:, None]
    index = torch.arange(rows) % 4
    batch = Batch((images,), batch.target, batch.lengths, index, batch.target + 1, torch.arange(rows))
    both = twice(batch)
    assert both.source_index is not None and both.references is not None and both.inputs is not None
    assert len(both.source[0]) == 8  # so that dropout in the encoder differs too
    assert torch.equal(both.source_index, torch.cat((index, index + 4)))
    for half in (slice(None, rows), slice(rows, None)):
        assert torch.equal(both.target[half], batch.target)
        assert torch.equal(both.lengths[half], batch.lengths)
        assert torch.equal(both.references[half], batch.references)
        assert torch.equal(both.inputs[half], batch.inputs)
        assert torch.equal(both.source[0][both.source_index[half]], images[index])
