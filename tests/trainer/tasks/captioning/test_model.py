from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from smoothloss_trainer.tasks import SequenceModel, select_rows, shift_right
from smoothloss_trainer.tasks.captioning.model import CaptioningModel, ShowAndTell, TopDown
from smoothloss_trainer.vocabulary import BOS

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


def test_show_and_tell_reads_the_image_as_its_first_word() -> None:
    model, (features,) = build(ShowAndTell)
    assert isinstance(model, ShowAndTell)
    inputs = torch.randint(4, VOCABULARY, (3, 5))
    read = torch.cat((model.project(features)[:, None], model.embedding(inputs)), 1)
    expected, _ = model.lstm(read)
    hidden = model.decode(model.encode(features), inputs)
    torch.testing.assert_close(hidden, expected[:, 1:], rtol=1e-5, atol=1e-6)


def lstm(weights: Sequence[Tensor], bias: Tensor, *, inputs: int) -> nn.LSTMCell:
    """Return an LSTM with these columns of weights, those of its inputs first."""
    whole = torch.cat(list(weights), 1)
    cell = nn.LSTMCell(inputs, whole.shape[1] - inputs)
    with torch.no_grad():
        cell.weight_ih.copy_(whole[:, :inputs])
        cell.weight_hh.copy_(whole[:, inputs:])
        cell.bias_ih.copy_(bias)
        cell.bias_hh.zero_()
    return cell


def test_top_down_attention_is_that_of_the_paper() -> None:
    """Anderson et al. 2018, Eq. 2 to 5, one image at a time, with torch's own LSTM."""
    model, (values, present) = build(TopDown)
    assert isinstance(model, TopDown)
    width, size = CONFIG.embedding, CONFIG.hidden
    language_part, own_part = model.attention_gates.weight.split(size, 1)
    # x1 = [h2; mean v; e]: the weights are laid out as the equations have them.
    columns = [language_part, model.mean_gates.weight, model.word_gates.weight, own_part]
    first = lstm(columns, model.word_gates.bias, inputs=size + 2 * width)
    second = lstm([model.language_gates.weight], model.language_gates.bias, inputs=width + size)
    inputs = torch.randint(4, VOCABULARY, (3, 5))
    hidden = model.decode(model.encode(values, present), inputs)
    for image in range(3):
        regions = torch.relu(model.project(values[image, present[image]]))
        h1 = c1 = h2 = c2 = torch.zeros(1, size)
        for position in range(5):
            word = model.embedding(inputs[image, position])[None]
            h1, c1 = first(torch.cat((h2, regions.mean(0, keepdim=True), word), 1), (h1, c1))
            energies = [model.energy(torch.tanh(model.keys(region) + model.query(h1[0]))) for region in regions]
            seen = torch.softmax(torch.cat(energies), 0) @ regions
            h2, c2 = second(torch.cat((seen[None], h1), 1), (h2, c2))
            torch.testing.assert_close(hidden[image, position], h2[0], rtol=1e-5, atol=1e-6)


def test_the_papers_sizes() -> None:
    assert CaptioningModel() == CaptioningModel(embedding=512, hidden=512, attention_hidden=512, dropout=0.5)
    one = ShowAndTell(CaptioningModel(), 2048, 100)
    assert one.lstm.weight_ih_l0.shape == (2048, 512) and one.lstm.weight_hh_l0.shape == (2048, 512)
    assert one.project.weight.shape == (512, 2048) and one.dropout.p == 0.5
    two = TopDown(CaptioningModel(), 2048, 100)
    assert two.language_gates.weight.shape == (2048, 512 + 512 + 512) and two.attention_gates.weight.shape == (
        2048,
        1024,
    )


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
