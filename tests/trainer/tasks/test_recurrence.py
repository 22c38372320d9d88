"""The loops give what plain torch gives: values and gradients in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from smoothloss_trainer.config import LossConfig
from smoothloss_trainer.losses import build_loss
from smoothloss_trainer.tasks import Batch, SequenceModel
from smoothloss_trainer.tasks.captioning.model import CaptioningModel, build_captioner
from smoothloss_trainer.tasks.recurrence import gru_cell, lstm_cell, run_padded
from smoothloss_trainer.tasks.translation.model import AttentiveModel, TranslationModel

PLAIN = "smoothloss_trainer.tasks.recurrence._is_plain"
BATCH, STEPS = 5, 7


def test_the_gru_cell_equals_torchs() -> None:
    torch.manual_seed(0)
    inputs, hidden, torchs = torch.randn(4, 5), torch.randn(4, 3), nn.GRUCell(5, 3)
    mine, recurrent = inputs @ torchs.weight_ih.T + torchs.bias_ih, hidden @ torchs.weight_hh.T + torchs.bias_hh
    torch.testing.assert_close(gru_cell(mine, recurrent, hidden), torchs(inputs, hidden))


def test_the_lstm_cell_equals_torchs() -> None:
    torch.manual_seed(0)
    inputs, hidden, cell, torchs = torch.randn(4, 5), torch.randn(4, 3), torch.randn(4, 3), nn.LSTMCell(5, 3)
    gates = inputs @ torchs.weight_ih.T + torchs.bias_ih + hidden @ torchs.weight_hh.T + torchs.bias_hh
    torch.testing.assert_close(lstm_cell(gates, cell), torchs(inputs, (hidden, cell)))


@pytest.mark.parametrize("cell", [gru_cell, lstm_cell])
def test_the_cells_gradients_are_those_of_finite_differences(cell: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    sizes = [(2, 9), (2, 9), (2, 3)] if cell is gru_cell else [(2, 12), (2, 3)]
    torch.autograd.gradcheck(cell, [torch.randn(*size, dtype=torch.float64, requires_grad=True) for size in sizes])


def models() -> dict[str, tuple[SequenceModel, tuple[Tensor, ...]]]:
    """Return a model of each kind with a source for it."""
    torch.manual_seed(1)
    sizes = {"embedding": 6, "encoder": 5, "decoder": 4, "attention": 3, "dropout": 0.0}
    tokens = torch.randint(4, 11, (BATCH, 6))
    regions = (torch.randn(BATCH, 4, 8, dtype=torch.float64), torch.rand(BATCH, 4) < 0.7)
    regions[1][:, 0] = True
    small = {"embedding": 6, "hidden": 5, "attention_hidden": 3, "dropout": 0.0}
    captioners = {a: build_captioner(CaptioningModel(attention=a, **small), 8, 11) for a in (False, True)}
    found = {
        name: (AttentiveModel(TranslationModel(cell=name, **sizes), 11, 11), (tokens, torch.tensor([6, 3, 6, 2, 1])))
        for name in ("gru", "lstm")
    }
    found["show_and_tell"] = (captioners[False], (torch.randn(BATCH, 8, dtype=torch.float64),))
    found["top_down"] = (captioners[True], regions)
    return {name: (model.double(), source) for name, (model, source) in found.items()}


@pytest.mark.parametrize("name", ["gru", "lstm", "show_and_tell", "top_down"])
@pytest.mark.parametrize("lengths", [None, (7, 2, 1, 7, 4), (3, 1, 2, 3, 3)])
def test_the_short_way_is_the_plain_one(
    monkeypatch: pytest.MonkeyPatch, name: str, lengths: tuple[int, ...] | None
) -> None:
    model, source = models()[name]
    inputs = torch.randint(4, 11, (BATCH, STEPS))
    wanted = torch.tensor(lengths or (STEPS,) * BATCH)
    counted = (torch.arange(STEPS) < wanted[:, None])[..., None]
    weights = torch.randn(BATCH, STEPS, model.classifier.in_features, dtype=torch.float64) * counted

    def gradients(given: Tensor | None) -> list[Tensor]:
        model.zero_grad()
        hidden = model.decode(model.encode(*source), inputs, given)
        (hidden * weights).sum().backward()
        return [hidden.detach() * counted, *(p.grad for p in model.parameters() if p.grad is not None)]

    short = gradients(None if lengths is None else wanted)
    monkeypatch.setattr(PLAIN, lambda tensor: True)
    plain = gradients(None)
    assert len(short) == len(plain) > 5
    for one, other in zip(short, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def test_a_second_backward_of_one_forward_adds_the_same() -> None:
    model, source = models()["gru"]
    loss = model.decode(model.encode(*source), torch.full((BATCH, STEPS), 5)).sum()
    loss.backward(retain_graph=True)
    once = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    loss.backward()
    twice = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    for one, two in zip(once, twice, strict=True):
        torch.testing.assert_close(2 * one, two)


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    more=st.integers(0, 3),
    lstm=st.booleans(),
    layers=st.integers(1, 3),
    bias=st.booleans(),
)
def test_a_padded_run_equals_a_packed_one(lengths: list[int], more: int, lstm: bool, layers: int, bias: bool) -> None:
    """States and all gradients; what is padded is as wild as it may be."""
    torch.manual_seed(0)
    kind = nn.LSTM if lstm else nn.GRU
    rnn = kind(3, 2, layers, bias=bias, bidirectional=True, batch_first=True).double()
    width = max(lengths) + more
    inputs = torch.randn(len(lengths), width, 3, dtype=torch.float64)
    inputs[torch.arange(width) >= torch.tensor(lengths)[:, None]] = 1e6
    inputs.requires_grad_()
    weight = torch.randn(len(lengths), width, 4, dtype=torch.float64)
    packed = pack_padded_sequence(inputs, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
    expected = pad_packed_sequence(rnn(packed)[0], batch_first=True, total_length=width)[0]
    wanted = [inputs, *rnn.parameters()]
    gradients = torch.autograd.grad((expected * weight).sum(), wanted)
    states = run_padded(rnn, inputs, torch.tensor(lengths))
    torch.testing.assert_close(states, expected, rtol=1e-12, atol=1e-12)
    for got, gradient in zip(torch.autograd.grad((states * weight).sum(), wanted), gradients, strict=True):
        torch.testing.assert_close(got, gradient, rtol=1e-10, atol=1e-12)


def test_a_padded_run_drops_between_layers_alone() -> None:
    torch.manual_seed(0)
    rnn = nn.GRU(3, 2, 2, bidirectional=True, batch_first=True, dropout=0.5)
    inputs, lengths = torch.randn(4, 5, 3), torch.tensor([5, 5, 3, 1])
    assert not torch.equal(*(run_padded(rnn, inputs, lengths) for _ in range(2)))
    rnn.eval()
    packed = pack_padded_sequence(inputs, lengths, batch_first=True)
    expected = pad_packed_sequence(rnn(packed)[0], batch_first=True)[0]
    torch.testing.assert_close(run_padded(rnn, inputs, lengths), expected)


@pytest.mark.parametrize("name", ["gru", "lstm", "show_and_tell", "top_down"])
@pytest.mark.parametrize(
    "settings",
    [
        {"name": "mle", "label_smoothing": 0.1},
        {"name": "mle", "consistency": 1.0},
        {"name": "seq", "alpha": 0.4, "num_samples": 2},
        {"name": "seq_lazy", "alpha": 0.4},
        {"name": "seq", "alpha": 0.4, "sampler": "edit", "pool": "vocabulary"},
    ],
)
def test_a_step_reads_no_value_of_a_device(name: str, settings: dict[str, Any]) -> None:
    """On the device without memory there is none to be read."""
    model, source = models()[name]
    batch = Batch(source, torch.zeros(BATCH, STEPS, dtype=torch.int64), torch.full((BATCH,), 3))
    loss = build_loss(LossConfig(**settings), None, 11)
    away = torch.device("meta")
    loss(model.to(away), batch.to(away), torch.Generator()).backward()
    assert all(weight.grad is not None and weight.grad.device == away for weight in model.parameters())
