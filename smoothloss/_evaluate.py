"""From a checked target to a loss: flatten the positions to rows, run the chosen implementation, shape the result."""

from __future__ import annotations

import torch
from torch import Tensor

from smoothloss._arguments import Call, Linear
from smoothloss.backends import Implementation, choose, reference
from smoothloss.ops._autograd import apply
from smoothloss.ops.linear_autograd import (
    LinearLogsumexpAndSelect,
    LinearSparseCrossEntropy,
    LinearSparseCrossEntropyRecompute,
    wanted_gradients,
)
from smoothloss.ops.logsumexp_and_select import LogsumexpAndSelect
from smoothloss.ops.sparse_cross_entropy import SparseCrossEntropy, reduce
from smoothloss.targets import SparseTarget, negative_entropy


def evaluate(input: Tensor, target: SparseTarget, linear: Linear | None, call: Call) -> Tensor:
    """Return the loss of `input` (logits, or hidden states with `linear`) against `target`, reduced."""
    rows, flat = _rows(input), target.reshape(torch.Size((input.shape[:-1].numel(),)))
    num_classes = input.shape[-1] if linear is None else linear.num_classes
    kind = choose(call.impl, rows.device.type, rows.dtype)
    loss = _reference(rows, flat, linear, call) if kind == "reference" else _kernels(rows, flat, linear, call, kind)
    if call.kl:
        constant = negative_entropy(flat, num_classes, call.options.label_smoothing).to(loss.dtype)
        loss = loss + reduce(constant, flat.mass(num_classes).to(loss.dtype), call.reduction, reference.mean)[0]
    return loss.reshape(input.shape[:-1]) if call.reduction == "none" else loss


def evaluate_sequence(
    input: Tensor, target: SparseTarget, counted: Tensor, linear: Linear | None, call: Call
) -> Tensor:
    """Return the loss of all L + 1 forwards together; "mean" divides by the ground truth's `counted` positions."""
    if call.reduction != "mean":
        return evaluate(input, target, linear, call)
    return evaluate(input, target, linear, call._replace(reduction="sum")) / counted.sum()


def evaluate_pair(input: Tensor, indices: Tensor, linear: Linear | None, impl: Implementation) -> tuple[Tensor, Tensor]:
    """Return ``(logsumexp, selected)`` of logits, or of hidden states with `linear`."""
    rows, slots = _rows(input), _rows(indices)
    kind = choose(impl, input.device.type, input.dtype)
    if kind == "reference":
        lse, selected = reference.logsumexp_and_select(_reference_logits(rows, linear), slots)
    elif linear is None:
        lse, selected = apply(LogsumexpAndSelect, rows, slots, kind)
    else:
        wanted = wanted_gradients(rows, linear.weight, linear.bias)
        lse, selected = apply(
            LinearLogsumexpAndSelect, rows, linear.weight, linear.bias, slots, linear.chunk_bytes, wanted, kind
        )
    return lse.to(selected.dtype).reshape(input.shape[:-1]), selected.reshape(indices.shape)


def _reference(rows: Tensor, target: SparseTarget, linear: Linear | None, call: Call) -> Tensor:
    logits = _reference_logits(rows, linear)
    dtype = reference.accumulator_dtype(rows.dtype)
    uniform = None if target.uniform is None else target.uniform.to(dtype)
    dense = None if target.rows is None else target.rows.mixture().dense_rows(slice(None), dtype)
    loss, mass = reference.sparse_cross_entropy(
        logits, target.indices, target.weights.to(dtype), uniform, call.options, dense
    )
    return reduce(loss, mass, call.reduction, reference.mean)[0]


def _fold_label_smoothing(target: SparseTarget, num_classes: int, call: Call) -> tuple[SparseTarget, Call]:
    """Put label smoothing into the target.

    A number that is an operator's argument is a constant of compiled code, and another one compiles it again; as a
    factor it is not.
    """
    eps = call.options.label_smoothing
    uniform = target.mass(num_classes) * eps
    if target.uniform is not None:
        uniform = uniform + target.uniform * (1 - eps)
    rows = target.rows and target.rows._replace(weights=target.rows.weights * (1 - eps))
    folded = SparseTarget(target.indices, target.weights * (1 - eps), uniform, rows)
    return folded, call._replace(options=call.options._replace(label_smoothing=0.0))


def _kernels(rows: Tensor, target: SparseTarget, linear: Linear | None, call: Call, kind: str) -> Tensor:
    if torch.compiler.is_compiling() and call.options.label_smoothing:
        num_classes = rows.shape[-1] if linear is None else linear.num_classes
        target, call = _fold_label_smoothing(target, num_classes, call)
    similarity = ([], []) if target.rows is None else target.rows.mixture().pack()
    entries = (target.indices, target.weights, target.uniform, *similarity)
    if linear is None:
        return apply(SparseCrossEntropy, rows, *entries, call.options, call.reduction, call.inplace, kind)
    layer = (rows, linear.weight, linear.bias)
    wanted = wanted_gradients(*layer)
    # Without gradients there is nothing to make in the forward but the loss.
    recompute = call.reduction == "none" or linear.memory == "low" or not any(wanted)
    function = LinearSparseCrossEntropyRecompute if recompute else LinearSparseCrossEntropy
    return apply(function, *layer, *entries, call.options, call.reduction, linear.chunk_bytes, wanted, kind)


def _rows(tensor: Tensor) -> Tensor:
    """Flatten all dimensions but the last."""
    return tensor if tensor.dim() == 2 else tensor.reshape(tensor.shape[:-1].numel(), tensor.shape[-1])


def _reference_logits(rows: Tensor, linear: Linear | None) -> Tensor:
    """Return logits as they are, or those of hidden states, in the accumulator dtype like the kernels'."""
    if linear is None:
        return rows
    dtype = reference.accumulator_dtype(rows.dtype)
    bias = None if linear.bias is None else linear.bias.to(dtype)
    with torch.autocast(rows.device.type, enabled=False):
        return torch.nn.functional.linear(rows.to(dtype), linear.weight.to(dtype), bias)
