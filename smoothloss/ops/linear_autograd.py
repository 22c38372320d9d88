"""The linear op under autograd: which operators run in the forward and in the backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from smoothloss.backends import implementation
from smoothloss.backends.common import RowOptions
from smoothloss.ops._autograd import differentiable_once
from smoothloss.ops.linear_sparse_cross_entropy import backward_op, forward_op, fused_op, select_op


def _cast(grads: list[Tensor], like: tuple[Tensor | None, ...], wanted: list[bool]) -> list[Tensor | None]:
    return [
        grad.to(tensor.dtype) if use and tensor is not None else None
        for grad, tensor, use in zip(grads, like, wanted, strict=True)
    ]


class LinearSparseCrossEntropy(torch.autograd.Function):
    """Reduced ("mean", "sum") loss of ``inputs @ weight.T + bias``; the gradients are made in the forward."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None,
        indices: Tensor, weights: Tensor, uniform: Tensor | None, similarity: list[Tensor], temperature: list[float],
        options: RowOptions, reduction: str, chunk_bytes: int, wanted: list[bool], impl: str,
    ) -> Tensor:  # fmt: skip
        """Compute the loss and the gradients for an incoming gradient of one."""
        loss, scale, *grads = fused_op(
            inputs, weight, bias, indices, weights, uniform, similarity, temperature,
            *options, reduction, chunk_bytes, wanted, impl,
        )  # fmt: skip
        ctx.save_for_backward(scale, inputs, weight, bias, *grads)
        ctx.wanted, ctx.is_mean, ctx.impl = wanted, reduction == "mean", impl
        result: Tensor = loss
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the saved gradients, in the accumulator dtype, and only then round them."""
        scale, inputs, weight, bias, *grads = ctx.saved_tensors
        with torch.no_grad():
            factor = grad * scale if ctx.is_mean else grad
            scaled = [
                _scaled(saved, factor, tensor.dtype, ctx.impl) if use else None
                for saved, tensor, use in zip(grads, (inputs, weight, bias), ctx.wanted, strict=True)
            ]
        return *differentiable_once(scaled, inputs, weight, bias, grad), *(None,) * 10


def _scaled(saved: Tensor, factor: Tensor, dtype: torch.dtype, impl: str) -> Tensor:
    if torch.compiler.is_compiling():
        return (saved * factor).to(dtype)
    result: Tensor = implementation(impl).scaled_copy(saved, factor, dtype)
    return result


class LinearSparseCrossEntropyRecompute(torch.autograd.Function):
    """Loss of ``inputs @ weight.T + bias``, of every row or reduced; the backward computes the logits again."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None,
        indices: Tensor, weights: Tensor, uniform: Tensor | None, similarity: list[Tensor], temperature: list[float],
        options: RowOptions, reduction: str, chunk_bytes: int, wanted: list[bool], impl: str,
    ) -> Tensor:  # fmt: skip
        """Compute the losses."""
        loss, lse, scale, row_entropy = forward_op(
            inputs, weight, bias, indices, weights, uniform, similarity, temperature,
            *options, reduction, chunk_bytes, impl,
        )  # fmt: skip
        ctx.save_for_backward(inputs, weight, bias, indices, weights, uniform, lse, scale, row_entropy, *similarity)
        ctx.temperature, ctx.options, ctx.is_mean = temperature, options, reduction == "mean"
        ctx.chunk_bytes, ctx.wanted, ctx.impl = chunk_bytes, wanted, impl
        result: Tensor = loss
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the logits again."""
        inputs, weight, bias, indices, weights, uniform, lse, scale, row_entropy, *similarity = ctx.saved_tensors
        with torch.no_grad():
            grads = backward_op(
                grad, scale if ctx.is_mean else None, inputs, weight, bias, lse, row_entropy,
                indices, weights, uniform, similarity, ctx.temperature, None,
                *ctx.options, ctx.chunk_bytes, ctx.wanted, ctx.impl,
            )  # fmt: skip
            grads = _cast(grads, (inputs, weight, bias), ctx.wanted)
        return *differentiable_once(grads, inputs, weight, bias, grad), *(None,) * 10


class LinearLogsumexpAndSelect(torch.autograd.Function):
    """``(logsumexp, gather)`` of the logits ``inputs @ weight.T + bias``, which never exist as a whole."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, indices: Tensor,
        chunk_bytes: int, wanted: list[bool], impl: str,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Compute both, chunk by chunk."""
        lse, selected = select_op(inputs, weight, bias, indices, chunk_bytes, impl)
        ctx.save_for_backward(inputs, weight, bias, indices, lse)
        ctx.chunk_bytes, ctx.wanted, ctx.impl = chunk_bytes, wanted, impl
        return lse, selected

    @staticmethod
    def backward(ctx: Any, grad_lse: Tensor, grad_selected: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of ``grad_lse * p + scatter_add(grad_selected)``: a target with that mass."""
        inputs, weight, bias, indices, lse = ctx.saved_tensors
        with torch.no_grad():
            grads = backward_op(
                grad_selected.new_ones(1), None, inputs, weight, bias, lse, grad_selected.new_empty(0),
                indices, -grad_selected, None, [], [], grad_lse,
                *RowOptions(), ctx.chunk_bytes, ctx.wanted, ctx.impl,
            )  # fmt: skip
            grads = _cast(grads, (inputs, weight, bias), ctx.wanted)
        return *differentiable_once(grads, inputs, weight, bias, grad_lse, grad_selected), *(None,) * 4


def wanted_gradients(*tensors: Tensor | None) -> list[bool]:
    """Return for which of (inputs, weight, bias) a gradient is asked for."""
    enabled = torch.is_grad_enabled()
    return [enabled and tensor is not None and tensor.requires_grad for tensor in tensors]
