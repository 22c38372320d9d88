"""Loops over time whose gradients are cheap: what a weight gets from all steps is one product, not one a step.

In a loop, autograd adds up a weight's gradient in as many products and sums as there are steps. Here each step only
notes its input and its gradient, and the backward ends with one product over all of them: the same sum, with fewer and
larger products. The notes are of one forward and backward; nothing is kept between steps of the training.

Under autocast, and where no gradients are wanted, everything is the plain torch code of the docstrings.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Notes = list[tuple[Tensor, ...]]


def _is_plain(tensor: Tensor) -> bool:
    kind = tensor.device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return not torch.is_grad_enabled() or autocast


class StepLinear:
    """``F.linear(x, weight, bias)`` for one step after another.

    Args:
        weight: (O, I).
        bias: (O,), or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._notes: Notes = []
        self._plain = _is_plain(weight) or not weight.requires_grad
        self._weight, self._bias = weight, bias
        if not self._plain:
            self._weight, self._bias = _GatherLinear.apply(weight, bias, self._notes)  # type: ignore[no-untyped-call]

    def __call__(self, x: Tensor) -> Tensor:
        """(B, I) to (B, O)."""
        if self._plain:
            return nn.functional.linear(x, self._weight, self._bias)
        output: Tensor = _ApplyLinear.apply(x, self._weight, self._bias, self._notes)  # type: ignore[no-untyped-call]
        return output


class _GatherLinear(torch.autograd.Function):
    """Hands the weights to the steps; its backward runs after theirs."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor | None, notes: Notes) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.notes = notes
        return weight.view_as(weight), None if bias is None else bias.view_as(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *_: Any) -> tuple[Tensor | None, Tensor | None, None]:
        if not ctx.notes:
            return None, None, None
        inputs, gradients = (torch.cat(parts) for parts in zip(*ctx.notes, strict=True))
        ctx.notes.clear()
        bias = gradients.sum(0) if ctx.needs_input_grad[1] else None
        return gradients.t() @ inputs, bias, None


class _ApplyLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, notes: Notes) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.notes = notes
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None]:
        x, weight = ctx.saved_tensors
        ctx.notes.append((x, gradient))
        return gradient @ weight if ctx.needs_input_grad[0] else None, None, None, None


class StepAttention:
    """Additive attention for one query after another: the context of each.

        alpha = softmax(tanh(keys + query) . energy + bias);   context = alpha @ values

    Args:
        keys: (B, S, A).
        values: (B, S, E).
        bias: (B, S) 0, or -inf where there is nothing to look at; it gets no gradient.
        energy: (1, A).
    """

    def __init__(self, keys: Tensor, values: Tensor, bias: Tensor, energy: Tensor) -> None:
        self._notes: Notes = []
        self._plain = _is_plain(keys) or not keys.requires_grad
        self._parts = (keys, values, bias, energy)
        if not self._plain:
            keys, values, energy = _GatherAttention.apply(keys, values, energy, self._notes)  # type: ignore[no-untyped-call]
            self._parts = (keys, values, bias, energy)

    def __call__(self, query: Tensor) -> Tensor:
        """(B, A) to (B, E); of fewer queries than there are keys, each belongs to the keys of its number."""
        if not self._plain:
            context: Tensor = _ApplyAttention.apply(query, *self._parts, self._notes)  # type: ignore[no-untyped-call]
            return context
        keys, values, bias, energy = self._parts
        keys, values, bias = (part[: len(query)] for part in (keys, values, bias))
        scores = nn.functional.linear(torch.tanh(keys + query[:, None]), energy).squeeze(-1) + bias
        return torch.bmm(torch.softmax(scores, -1)[:, None], values).squeeze(1)


class _GatherAttention(torch.autograd.Function):
    """Hands keys, values and energy to the steps; its backward runs after theirs."""

    @staticmethod
    def forward(ctx: Any, keys: Tensor, values: Tensor, energy: Tensor, notes: Notes) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.notes = notes
        return keys.view_as(keys), values.view_as(values), energy.view_as(energy)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *_: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        if not ctx.notes:
            return None, None, None, None
        hidden, pre, scores, alpha, context = zip(*ctx.notes, strict=True)
        ctx.notes.clear()
        rows = max(map(len, pre))
        keys = _with_rows(pre[0], rows)
        for each in pre[1:]:
            keys[: len(each)] += each
        parts = (torch.stack([_with_rows(each, rows) for each in kind], 1) for kind in (alpha, context))
        values = torch.bmm(next(parts).transpose(1, 2), next(parts))
        energy = torch.stack([score.flatten() @ each.flatten(0, 1) for score, each in zip(scores, hidden, strict=True)])
        return keys, values, energy.sum(0)[None], None


class _ApplyAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, energy: Tensor, notes: Notes
    ) -> Tensor:
        keys, values, bias = (part[: len(query)] for part in (keys, values, bias))
        hidden = (keys + query[:, None]).tanh_()
        alpha = torch.softmax((hidden @ energy[0]).add_(bias), -1)
        ctx.save_for_backward(hidden, alpha, values, energy)
        ctx.notes = notes
        return torch.bmm(alpha[:, None], values).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        hidden, alpha, values, energy = ctx.saved_tensors
        share = torch.bmm(values, gradient[..., None]).squeeze(-1)
        scores = alpha * (share - (alpha * share).sum(-1, keepdim=True))
        pre = torch.ops.aten.tanh_backward(scores[..., None] * energy[0], hidden)
        ctx.notes.append((hidden, pre, scores, alpha, gradient))
        return pre.sum(1), None, None, None, None, None


def _with_rows(tensor: Tensor, rows: int) -> Tensor:
    """The tensor (N, ...) with rows of zeros behind its own."""
    missing = rows - len(tensor)
    return torch.cat((tensor, tensor.new_zeros(missing, *tensor.shape[1:]))) if missing else tensor


def gru_cell(inputs: Tensor, recurrent: Tensor, hidden: Tensor) -> Tensor:
    """The hidden state (B, H) after one step.

        r, z, n = gates;   n = tanh(inputs_n + r * recurrent_n);   h = (1 - z) n + z h,   r and z sigmoids of the sums

    Args:
        inputs: (B, 3H) the inputs' share of the pre-activations.
        recurrent: (B, 3H) the hidden state's share.
        hidden: (B, H) the hidden state before the step.
    """
    if _is_plain(inputs):
        return _gru(inputs, recurrent, hidden)[0]
    output: Tensor = _GRUCell.apply(inputs, recurrent, hidden)  # type: ignore[no-untyped-call]
    return output


def _gru(inputs: Tensor, recurrent: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    size = hidden.shape[-1]
    both = torch.sigmoid(inputs[:, : 2 * size] + recurrent[:, : 2 * size])
    reset, update = both.chunk(2, -1)
    new = torch.tanh(torch.addcmul(inputs[:, 2 * size :], reset, recurrent[:, 2 * size :]))
    return torch.lerp(new, hidden, update), both, new, recurrent[:, 2 * size :]


class _GRUCell(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, recurrent: Tensor, hidden: Tensor) -> Tensor:
        output, *kept = _gru(inputs, recurrent, hidden)
        ctx.save_for_backward(*kept, hidden)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        both, new, recurrent_new, hidden = ctx.saved_tensors
        reset, update = both.chunk(2, -1)
        kept = gradient * update
        d_new = torch.ops.aten.tanh_backward(gradient - kept, new)
        gates = torch.cat((d_new * recurrent_new, gradient * (hidden - new)), -1)
        gates = torch.ops.aten.sigmoid_backward(gates, both)
        return torch.cat((gates, d_new), -1), torch.cat((gates, d_new * reset), -1), kept


def lstm_cell(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """The hidden state and cell (B, H) after one step.

        i, f, g, o = gates.chunk(4, -1);   c = sigmoid(f) c + sigmoid(i) tanh(g);   h = sigmoid(o) tanh(c)

    Args:
        gates: (B, 4H) pre-activations.
        cell: (B, H) the cell before the step.
    """
    if _is_plain(gates):
        return _lstm(gates, cell)[:2]
    return _LSTMCell.apply(gates, cell)  # type: ignore[no-untyped-call]


def _lstm(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    size = cell.shape[-1]
    entry, forget = torch.sigmoid(gates[:, : 2 * size]).chunk(2, -1)
    new, leave = torch.tanh(gates[:, 2 * size : 3 * size]), torch.sigmoid(gates[:, 3 * size :])
    after = torch.addcmul(forget * cell, entry, new)
    squashed = torch.tanh(after)
    return leave * squashed, after, entry, forget, torch.cat((new, leave), -1), squashed


class _LSTMCell(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        hidden, after, *kept = _lstm(gates, cell)
        ctx.save_for_backward(*kept, cell)
        return hidden, after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_hidden: Tensor, d_after: Tensor) -> tuple[Tensor, Tensor]:
        entry, forget, both, squashed, cell = ctx.saved_tensors
        new, leave = both.chunk(2, -1)
        d_cell = d_after + torch.ops.aten.tanh_backward(d_hidden * leave, squashed)
        sigmoid_backward = torch.ops.aten.sigmoid_backward
        parts = [sigmoid_backward(d_cell * new, entry), sigmoid_backward(d_cell * cell, forget)]
        parts += [torch.ops.aten.tanh_backward(d_cell * entry, new), sigmoid_backward(d_hidden * squashed, leave)]
        return torch.cat(parts, -1), d_cell * forget


class ByLength:
    """Rows sorted by falling length, so that a step of a loop over time works on those that still go on.

    Args:
        lengths: (B,) steps of each row, on the CPU.
        steps: T, the most of them.

    Attributes:
        order: (B,) the rows by falling length.
        going_on: How many of them go on in each step, up to the last one that any takes.
    """

    def __init__(self, lengths: Tensor, steps: int) -> None:
        self.order = torch.argsort(lengths, descending=True, stable=True)
        counts = (lengths[None] > torch.arange(steps)[:, None]).sum(1).tolist()
        self.going_on = [count for count in counts if count]
        self._size = (len(lengths), steps)
        self._places = torch.cat([self.order[:count] * steps + step for step, count in enumerate(self.going_on)])

    def pack(self, sequences: Tensor) -> Tensor:
        """(N, F) all that counts of (B, T, F), one step after the other."""
        return sequences.flatten(0, 1).index_select(0, self._places)

    def unpack(self, outputs: list[Tensor]) -> Tensor:
        """(B, T, H) in the order that was given, from what each step gave; zeros behind the last step of each row."""
        packed = torch.cat(outputs)
        whole = packed.new_zeros(self._size[0] * self._size[1], packed.shape[1])
        return whole.index_copy(0, self._places, packed).view(*self._size, -1)


def run_padded(rnn: nn.GRU | nn.LSTM, inputs: Tensor, lengths: Tensor) -> Tensor:
    """What a bidirectional RNN says of padded rows: (B, S, 2H), zeros behind the end of each row.

        pad_packed_sequence(rnn(pack_padded_sequence(inputs, lengths, ...))[0], total_length=S)

    without a look at the lengths: nothing waits for a device, and all that is launched depends on shapes alone. Each
    direction of each layer is a run of its own, and the backward one reads every row turned around in its place.

    Args:
        rnn: ``batch_first`` and ``bidirectional``.
        inputs: (B, S, E).
        lengths: (B,) steps of each row, on the device of the inputs.
    """
    kernel: Any = torch.lstm if isinstance(rnn, nn.LSTM) else torch.gru
    steps = torch.arange(inputs.shape[1], device=inputs.device)
    is_inside = steps < lengths[:, None]
    turned = torch.where(is_inside, lengths[:, None] - 1 - steps, steps)[..., None]
    start = inputs.new_zeros(1, inputs.shape[0], rnn.hidden_size)
    state = (start, start) if isinstance(rnn, nn.LSTM) else start
    values = inputs
    for layer in range(rnn.num_layers):
        if layer:
            values = nn.functional.dropout(values, rnn.dropout, rnn.training)
        forward, backward = rnn.all_weights[2 * layer : 2 * layer + 2]
        settings = (rnn.bias, 1, 0.0, rnn.training, False, True)
        with warnings.catch_warnings():
            # cuDNN wants the weights of a run in one piece, and both directions lie in one: a few small copies.
            warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk")
            onward = kernel(values, state, forward, *settings)[0]
            back = kernel(values.gather(1, turned.expand_as(values)), state, backward, *settings)[0]
        values = torch.cat((onward, back.gather(1, turned.expand_as(back))), -1)
        values = values.masked_fill(~is_inside[..., None], 0.0)
    return values
