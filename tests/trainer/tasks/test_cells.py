from __future__ import annotations

import torch

from smoothloss_trainer.tasks.cells import gru_cell, lstm_cell


def test_the_gru_cell_equals_torchs() -> None:
    torch.manual_seed(0)
    inputs, hidden, torchs = torch.randn(4, 5), torch.randn(4, 3), torch.nn.GRUCell(5, 3)
    mine, recurrent = inputs @ torchs.weight_ih.T + torchs.bias_ih, hidden @ torchs.weight_hh.T + torchs.bias_hh
    torch.testing.assert_close(gru_cell(mine, recurrent, hidden), torchs(inputs, hidden))


def test_the_lstm_cell_equals_torchs() -> None:
    torch.manual_seed(0)
    inputs, hidden, cell, torchs = torch.randn(4, 5), torch.randn(4, 3), torch.randn(4, 3), torch.nn.LSTMCell(5, 3)
    gates = inputs @ torchs.weight_ih.T + torchs.bias_ih + hidden @ torchs.weight_hh.T + torchs.bias_hh
    torch.testing.assert_close(lstm_cell(gates, cell), torchs(inputs, (hidden, cell)))
