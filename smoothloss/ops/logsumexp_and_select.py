"""The pair that other losses are built from, ``(lse, selected logits)``, differentiable in both, as torch operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from smoothloss.backends import implementation
from smoothloss.backends.common import RowOptions, accumulator_dtype
from smoothloss.ops._autograd import differentiable_once
from smoothloss.ops._register import define
from smoothloss.ops.checks import as_int32
from smoothloss.ops.sparse_cross_entropy import backward_op


def _forward(logits: Tensor, indices: Tensor, impl: str) -> tuple[Tensor, Tensor]:
    logits = logits if logits.stride(-1) == 1 else logits.contiguous()
    result: tuple[Tensor, Tensor] = implementation(impl).logsumexp_and_select_forward(
        logits, as_int32(indices, logits.shape[-1])
    )
    return result


def _forward_fake(logits: Tensor, indices: Tensor, impl: str) -> tuple[Tensor, Tensor]:
    del impl
    dtype = accumulator_dtype(logits.dtype)
    return logits.new_empty(logits.shape[0], dtype=torch.float64), logits.new_empty(indices.shape, dtype=dtype)


forward_op = define(
    "logsumexp_and_select(Tensor logits, Tensor indices, str impl) -> (Tensor lse, Tensor selected)",
    _forward,
    _forward_fake,
)


class LogsumexpAndSelect(torch.autograd.Function):
    """``(logsumexp(logits), logits.gather(-1, indices))`` of logits ``(N, V)`` and indices ``(N, S)``."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, indices: Tensor, impl: str) -> tuple[Tensor, Tensor]:
        """Compute both in one pass over the logits."""
        lse, selected = forward_op(logits, indices, impl)
        ctx.save_for_backward(logits, indices, lse)
        ctx.impl = impl
        return lse, selected

    @staticmethod
    def backward(ctx: Any, grad_lse: Tensor, grad_selected: Tensor) -> tuple[Tensor | None, ...]:
        """Return ``grad_lse * p + scatter_add(grad_selected)``: the primitive's backward with that mass and target."""
        logits, indices, lse = ctx.saved_tensors
        with torch.no_grad():
            one, nothing = grad_selected.new_ones(1), grad_selected.new_empty(0)
            grad = backward_op(
                one,
                None,
                logits,
                lse,
                nothing,
                indices,
                -grad_selected,
                None,
                [],
                [],
                grad_lse,
                *RowOptions(),
                ctx.impl,
            )
        return *differentiable_once([grad], logits, grad_lse, grad_selected), None, None
