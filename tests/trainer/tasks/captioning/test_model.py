from __future__ import annotations

import pytest
import torch
from torch import Tensor

from smoothloss.trainer.tasks import SequenceModel, select_rows, shift_right
from smoothloss.trainer.tasks.captioning.model import CaptioningModel, ShowAndTell, TopDown
from smoothloss.trainer.vocabulary import BOS

CONFIG = CaptioningModel(embedding=6, hidden=5, attention_hidden=4, dropout=0.0)
FEATURES, VOCABULARY = 7, 11


def build(kind: type[ShowAndTell] | type[TopDown]) -> tuple[SequenceModel, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    model = kind(CONFIG, FEATURES, VOCABULARY).eval()
    if kind is ShowAndTell:
        return model, (torch.randn(3, FEATURES),)
    present = torch.tensor([[True, True, False], [True, True, True], [True, False, False]])
    return model, (torch.randn(3, 3, FEATURES), present)


@pytest.mark.parametrize("kind", [ShowAndTell, TopDown])
def test_teacher_forcing_equals_steps(kind: type[ShowAndTell] | type[TopDown]) -> None:
    model, source = build(kind)
    target = torch.randint(4, VOCABULARY, (3, 6))
    inputs = shift_right(target)
    memory = model.encode(*source)
    hidden = model.decode(memory, inputs)
    assert hidden.shape == (3, 6, 5)
    logits = model.classifier(hidden)
    state = model.initial_state(memory)
    for position in range(6):
        step, state = model.step(inputs[:, position], state)
        torch.testing.assert_close(step, logits[:, position], rtol=1e-5, atol=1e-6)
    assert (inputs[:, 0] == BOS).all()


@pytest.mark.parametrize("kind", [ShowAndTell, TopDown])
def test_rows_are_independent_and_can_be_repeated(kind: type[ShowAndTell] | type[TopDown]) -> None:
    model, source = build(kind)
    inputs = torch.randint(4, VOCABULARY, (4, 5))
    rows = torch.tensor([2, 0, 0, 1])
    together = model.decode(select_rows(model.encode(*source), rows), inputs)
    for number, row in enumerate(rows.tolist()):
        alone = model.decode(model.encode(*(part[row : row + 1] for part in source)), inputs[number : number + 1])
        torch.testing.assert_close(together[number], alone[0], rtol=1e-5, atol=1e-6)


def test_padded_regions_have_no_influence() -> None:
    model, (values, present) = build(TopDown)
    inputs = torch.randint(4, VOCABULARY, (3, 5))
    other = torch.where(present[..., None], values, torch.full_like(values, 99.0))
    wider = torch.cat((other, torch.ones(3, 2, FEATURES)), 1)
    more = torch.cat((present, torch.zeros(3, 2, dtype=torch.bool)), 1)
    expected = model.decode(model.encode(values, present), inputs)
    torch.testing.assert_close(model.decode(model.encode(wider, more), inputs), expected, rtol=1e-5, atol=1e-6)


def test_attention_sees_each_region() -> None:
    model, (values, present) = build(TopDown)
    values = values.requires_grad_()
    inputs = torch.randint(4, VOCABULARY, (3, 5))
    model.decode(model.encode(values, present), inputs).square().sum().backward()
    assert values.grad is not None
    seen = values.grad.abs().sum(-1) > 0
    assert torch.equal(seen, present)


@pytest.mark.parametrize("kind", [ShowAndTell, TopDown])
def test_every_parameter_is_trained(kind: type[ShowAndTell] | type[TopDown]) -> None:
    model, source = build(kind)
    inputs = torch.randint(4, VOCABULARY, (3, 5))
    model.classifier(model.decode(model.encode(*source), inputs)).square().sum().backward()
    unused = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert unused == []
