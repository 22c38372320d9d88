from __future__ import annotations

import pytest
import torch

from smoothloss.trainer.decoding import beam_search
from smoothloss.trainer.tasks import select_rows
from smoothloss.trainer.tasks.translation.data import source_tensors
from smoothloss.trainer.tasks.translation.model import AttentiveModel, TranslationModel
from smoothloss.trainer.vocabulary import BOS

SOURCE = [[4, 5, 6, 7], [8], [9, 10]]


@pytest.fixture(params=["gru", "lstm"])
def model(request: pytest.FixtureRequest) -> AttentiveModel:
    torch.manual_seed(3)
    sizes = {"embedding": 6, "encoder": 5, "decoder": 8, "attention": 7}
    model = AttentiveModel(TranslationModel(cell=request.param, dropout=0.5, **sizes), 12, 15).double()
    for parameter in model.parameters():  # far from linear, so that a mistake shows
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def test_steps_equal_teacher_forcing(model: AttentiveModel) -> None:
    memory = model.encode(*source_tensors(SOURCE))
    inputs = torch.tensor([[BOS, 4, 5], [BOS, 6, 7], [BOS, 8, 9]])
    expected = model.classifier(model.decode(memory, inputs))
    state = model.initial_state(memory)
    for position, tokens in enumerate(inputs.unbind(1)):
        logits, state = model.step(tokens, state)
        torch.testing.assert_close(logits, expected[:, position])


def test_a_sentence_does_not_see_its_batch(model: AttentiveModel) -> None:
    together = model.encode(*source_tensors(SOURCE))
    inputs = torch.tensor([[BOS, 4, 5]])
    for number, tokens in enumerate(SOURCE):
        alone = model.decode(model.encode(*source_tensors([tokens])), inputs)
        row = select_rows(together, torch.tensor([number]))
        torch.testing.assert_close(model.decode(row, inputs), alone)


def test_a_position_sees_no_later_word(model: AttentiveModel) -> None:
    memory = model.encode(*source_tensors(SOURCE))
    inputs = torch.tensor([[BOS, 4, 5]] * 3)
    changed = inputs.clone()
    changed[:, 2] = 9
    before, after = model.decode(memory, inputs), model.decode(memory, changed)
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.equal(before[:, 2], after[:, 2])


def test_every_source_word_matters_and_every_parameter_learns(model: AttentiveModel) -> None:
    inputs = torch.tensor([[BOS, 4, 5]])
    base = model.decode(model.encode(*source_tensors([[4, 5, 6]])), inputs)
    for position in range(3):
        tokens = [4, 5, 6]
        tokens[position] = 11
        assert not torch.allclose(model.decode(model.encode(*source_tensors([tokens])), inputs), base)
    model.classifier(base).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_beam_search_gives_the_same_at_any_batch_size(model: AttentiveModel) -> None:
    sources = [[4 + (7 * n + k) % 8 for k in range(n % 5 + 1)] for n in range(12)]
    options = {"beam_size": 3, "max_length": 7, "length_penalty": 1.0}
    together = beam_search(model, model.encode(*source_tensors(sources)), 12, **options)
    for number, tokens in enumerate(sources):
        alone = beam_search(model, model.encode(*source_tensors([tokens])), 1, **options)[0]
        assert [one.tokens for one in alone] == [one.tokens for one in together[number]]


def test_dropout_is_for_training_only(model: AttentiveModel) -> None:
    memory, inputs = model.encode(*source_tensors(SOURCE)), torch.tensor([[BOS, 4, 5]] * 3)
    assert torch.equal(model.decode(memory, inputs), model.decode(memory, inputs))
    model.train()
    assert not torch.equal(model.decode(memory, inputs), model.decode(memory, inputs))
