"""Recurrent cells whose gates are given, so that a model can compute the inputs' share for all positions at once."""

from __future__ import annotations

import torch
from torch import Tensor


def lstm_cell(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """The hidden state and cell (B, H) after one step.

        i, f, g, o = gates.chunk(4, -1);   c = sigmoid(f) c + sigmoid(i) tanh(g);   h = sigmoid(o) tanh(c)

    Args:
        gates: (B, 4H) pre-activations.
        cell: (B, H) the cell before the step.
    """
    entry, forget, new, exit_ = gates.chunk(4, -1)
    cell = torch.sigmoid(forget) * cell + torch.sigmoid(entry) * torch.tanh(new)
    return torch.sigmoid(exit_) * torch.tanh(cell), cell


def gru_cell(inputs: Tensor, recurrent: Tensor, hidden: Tensor) -> Tensor:
    """The hidden state (B, H) after one step.

        r, z, n = gates;   n = tanh(inputs_n + r * recurrent_n);   h = (1 - z) n + z h,   r and z sigmoids of the sums

    Args:
        inputs: (B, 3H) the inputs' share of the pre-activations.
        recurrent: (B, 3H) the hidden state's share.
        hidden: (B, H) the hidden state before the step.
    """
    size = hidden.shape[-1]
    reset, update = torch.sigmoid(inputs[:, : 2 * size] + recurrent[:, : 2 * size]).chunk(2, -1)
    new = torch.tanh(inputs[:, 2 * size :] + reset * recurrent[:, 2 * size :])
    return torch.lerp(new, hidden, update)
