"""The pair that other losses are built from, ``(lse, selected logits)``, differentiable in both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from smoothloss import backends
from smoothloss.backends.common import RowOptions, accumulator_dtype
from smoothloss.ops.cross_entropy import backward_op
from smoothloss.ops.register import define


def logsumexp_of(statistics: Tensor) -> Tensor:
    """Return ``largest + log(sum)`` in float64: in float32 it would lose the logarithm beside a large offset."""
    return statistics[:, 0].double() + statistics[:, 1].double().log()


def logsumexp_and_select(logits: Tensor, indices: Tensor, impl: str) -> tuple[Tensor, Tensor]:
    """Return ``logits.logsumexp(-1)`` (N,) float64 and ``logits.gather(-1, indices)`` (N, S)."""
    if impl == "reference":
        statistics, selected = backends.get(impl).select(logits, indices)
        return logsumexp_of(statistics), selected
    lse, selected, _ = select_op(logits, indices, impl)
    return lse, selected


def _select(logits: Tensor, indices: Tensor, impl: str) -> tuple[Tensor, Tensor, Tensor]:
    rows = logits if logits.stride(-1) == 1 else logits.contiguous()
    statistics, selected = backends.get(impl).select(rows, indices.contiguous())
    return logsumexp_of(statistics), selected, statistics


def _select_fake(logits: Tensor, indices: Tensor, impl: str) -> tuple[Tensor, Tensor, Tensor]:
    del impl
    rows, dtype = logits.shape[0], accumulator_dtype(logits.dtype)
    statistics = logits.new_empty((rows, 3), dtype=dtype)
    return logits.new_empty(rows, dtype=torch.float64), logits.new_empty(indices.shape, dtype=dtype), statistics


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, indices, impl = inputs
    ctx.save_for_backward(logits, indices, output[2])
    ctx.impl = impl


def _backward(ctx: Any, grad_lse: Tensor, grad_selected: Tensor, unused: Tensor) -> tuple[Tensor, None, None]:
    """Return ``grad_lse * p + scatter_add(grad_selected)``: the primitive's backward with that mass and target."""
    del unused
    logits, indices, statistics = ctx.saved_tensors
    one = grad_selected.new_ones(1)
    grad = backward_op(
        one, None, logits, statistics, indices, -grad_selected, None, None, [], [], None, grad_lse, [*RowOptions()],
        ctx.impl,
    )  # fmt: skip
    return grad, None, None


select_op = define(
    "logsumexp_and_select(Tensor logits, Tensor indices, str impl) -> (Tensor lse, Tensor selected, Tensor statistics)",
    _select,
    _select_fake,
    backward=_backward,
    setup_context=_setup_context,
)
