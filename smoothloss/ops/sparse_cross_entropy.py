"""The primitive on logits as torch operators: schema, fake, autograd. The arithmetic is in the implementations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from smoothloss.ops._autograd import differentiable_once
from smoothloss.ops._checks import as_int32
from smoothloss.ops._register import OPTIONS_SCHEMA, define
from smoothloss.ops.dispatch import implementation
from smoothloss.ops.options import RowOptions
from smoothloss.ops.reference import accumulator_dtype


def _prepare(
    logits: Tensor, indices: Tensor, weights: Tensor, uniform: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    dtype = accumulator_dtype(logits.dtype)
    logits = logits if logits.stride(-1) == 1 else logits.contiguous()
    uniform = None if uniform is None else uniform.to(dtype).contiguous()
    return logits, as_int32(indices, logits.shape[-1]), weights.to(dtype).contiguous(), uniform


def reduce(loss: Tensor, mass: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    """Return the reduced loss, and the factor the incoming gradient is multiplied by (empty where that is 1)."""
    if reduction == "mean":
        count = mass.count_nonzero()
        # Nothing to average gives nan, as torch does; its gradient is zero and must not become 0 * inf.
        return loss.sum() / count, count.clamp(min=1).to(loss.dtype).reciprocal()
    # Operators must not return what aliases an input or another output: hence the fresh empty factor.
    return (loss.sum() if reduction == "sum" else loss), loss.new_empty(0)


def _forward(
    logits: Tensor, indices: Tensor, weights: Tensor, uniform: Tensor | None,
    label_smoothing: float, entropy: float, z_loss: float, logit_scale: float, softcap: float,
    reduction: str, impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    options = RowOptions(label_smoothing, entropy, z_loss, logit_scale, softcap)
    target = _prepare(logits, indices, weights, uniform)
    loss, lse, row_entropy, mass = implementation(impl).sparse_cross_entropy_forward(*target, options)
    loss, scale = reduce(loss, mass, reduction)
    return loss, lse, row_entropy, scale


def _forward_fake(
    logits: Tensor, indices: Tensor, weights: Tensor, uniform: Tensor | None,
    label_smoothing: float, entropy: float, z_loss: float, logit_scale: float, softcap: float,
    reduction: str, impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    del indices, weights, uniform, label_smoothing, z_loss, logit_scale, softcap, impl
    rows, dtype = logits.shape[0], accumulator_dtype(logits.dtype)
    loss = logits.new_empty(rows if reduction == "none" else (), dtype=dtype)
    scale = logits.new_empty(() if reduction == "mean" else 0, dtype=dtype)
    row_entropy = logits.new_empty(rows if entropy else 0, dtype=dtype)
    return loss, logits.new_empty(rows, dtype=torch.float64), row_entropy, scale


def _backward_into(
    out: Tensor, grad: Tensor, logits: Tensor, lse: Tensor, row_entropy: Tensor,
    indices: Tensor, weights: Tensor, uniform: Tensor | None, mass: Tensor | None, options: RowOptions, impl: str,
) -> None:  # fmt: skip
    logits, indices, weights, uniform = _prepare(logits, indices, weights, uniform)
    grad = grad.to(weights.dtype).contiguous()
    mass = None if mass is None else mass.to(weights.dtype).contiguous()
    implementation(impl).sparse_cross_entropy_backward(
        grad, logits, lse, row_entropy, indices, weights, uniform, options, out, mass
    )


def _backward(
    grad: Tensor, logits: Tensor, lse: Tensor, row_entropy: Tensor,
    indices: Tensor, weights: Tensor, uniform: Tensor | None, mass: Tensor | None,
    label_smoothing: float, entropy: float, z_loss: float, logit_scale: float, softcap: float, impl: str,
) -> Tensor:  # fmt: skip
    out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    options = RowOptions(label_smoothing, entropy, z_loss, logit_scale, softcap)
    _backward_into(out, grad, logits, lse, row_entropy, indices, weights, uniform, mass, options, impl)
    return out


def _backward_inplace(
    grad: Tensor, logits: Tensor, lse: Tensor, row_entropy: Tensor,
    indices: Tensor, weights: Tensor, uniform: Tensor | None,
    label_smoothing: float, entropy: float, z_loss: float, logit_scale: float, softcap: float, impl: str,
) -> None:  # fmt: skip
    options = RowOptions(label_smoothing, entropy, z_loss, logit_scale, softcap)
    _backward_into(logits, grad, logits, lse, row_entropy, indices, weights, uniform, None, options, impl)


def _backward_fake(grad: Tensor, logits: Tensor, *rest: Any) -> Tensor:
    del grad, rest
    return logits.new_empty(logits.shape)


def _backward_inplace_fake(*arguments: Any) -> None:
    del arguments


_TARGET_SCHEMA = "Tensor indices, Tensor weights, Tensor? uniform"
forward_op = define(
    f"sparse_cross_entropy(Tensor logits, {_TARGET_SCHEMA}, {OPTIONS_SCHEMA}, str reduction, str impl)"
    " -> (Tensor loss, Tensor lse, Tensor row_entropy, Tensor scale)",
    _forward,
    _forward_fake,
)
backward_op = define(
    f"sparse_cross_entropy_backward(Tensor grad, Tensor logits, Tensor lse, Tensor row_entropy, {_TARGET_SCHEMA},"
    f" Tensor? mass, {OPTIONS_SCHEMA}, str impl) -> Tensor",
    _backward,
    _backward_fake,
)
backward_inplace_op = define(
    "sparse_cross_entropy_backward_(Tensor grad, Tensor(a!) logits, Tensor lse, Tensor row_entropy,"
    f" {_TARGET_SCHEMA}, {OPTIONS_SCHEMA}, str impl) -> ()",
    _backward_inplace,
    _backward_inplace_fake,
)


class SparseCrossEntropy(torch.autograd.Function):
    """Loss of logits ``(N, V)`` against a sparse target, reduced; differentiable once in the logits."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, indices: Tensor, weights: Tensor, uniform: Tensor | None,
        options: RowOptions, reduction: str, inplace: bool, impl: str,
    ) -> Tensor:  # fmt: skip
        """Compute the loss; the backward recomputes the probabilities from the saved ``lse``."""
        loss, lse, row_entropy, scale = forward_op(logits, indices, weights, uniform, *options, reduction, impl)
        ctx.save_for_backward(logits, indices, weights, uniform, lse, row_entropy, scale)
        ctx.options, ctx.inplace, ctx.impl, ctx.is_mean = options, inplace, impl, reduction == "mean"
        ctx.consumed = False
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the logits, in their own storage where that was allowed."""
        if ctx.consumed:
            raise RuntimeError("backward a second time: the logits were overwritten by their gradient (inplace=True)")
        logits, indices, weights, uniform, lse, row_entropy, scale = ctx.saved_tensors
        with torch.no_grad():
            scaled = grad * scale if ctx.is_mean else grad
            saved = (scaled, logits, lse, row_entropy, indices, weights, uniform)
            if ctx.inplace:
                ctx.consumed = True
                backward_inplace_op(*saved, *ctx.options, ctx.impl)
                # Whoever saved the logits for a backward of their own must hear of it.
                torch.autograd.graph.increment_version(logits)
                d_logits = logits.detach()
            else:
                d_logits = backward_op(*saved, None, *ctx.options, ctx.impl)
        return *differentiable_once([d_logits], logits, grad), *(None,) * 7
