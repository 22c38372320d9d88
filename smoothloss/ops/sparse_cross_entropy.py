"""The primitive on logits as torch operators: schema, fake, autograd. The arithmetic is in the implementations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from smoothloss.backends import implementation
from smoothloss.backends.common import DenseRows, RowOptions, accumulator_dtype
from smoothloss.ops._autograd import differentiable_once
from smoothloss.ops._register import OPTIONS_SCHEMA, TARGET_SCHEMA, define
from smoothloss.ops.checks import as_int32
from smoothloss.ops.linear_layer import default_chunk_bytes
from smoothloss.ops.similarity_rows import SimilarityMixture

Mean = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def reduce(loss: Tensor, mass: Tensor, reduction: str, mean: Mean) -> tuple[Tensor, Tensor]:
    """Return the reduced loss, and the factor the incoming gradient is multiplied by (empty where that is 1)."""
    if reduction == "mean":
        return mean(loss, mass)
    # Operators must not return what aliases an input or another output: hence the fresh empty factor.
    return (loss.sum() if reduction == "sum" else loss), loss.new_empty(0)


def joined(results: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Return what the kernels returned for several parts of the rows as one, without a copy where there is one part."""
    return results[0] if len(results) == 1 else tuple(map(torch.cat, zip(*results, strict=True)))


def _part(tensor: Tensor, part: slice | None) -> Tensor:
    # Not `tensor[:]`: a dozen views a step cost the host as much as a kernel.
    return tensor if part is None else tensor[part]


class _Problem:
    """Logits and target as the kernels take them, in parts whose dense rows fit the budget."""

    def __init__(
        self, logits: Tensor, indices: Tensor, weights: Tensor, uniform: Tensor | None,
        similarity: list[Tensor], temperature: list[float], checked: bool = False,
    ) -> None:  # fmt: skip
        dtype = accumulator_dtype(logits.dtype)
        self.logits = logits if logits.stride(-1) == 1 else logits.contiguous()
        self.indices, self.weights = as_int32(indices, logits.shape[-1], checked), weights.to(dtype).contiguous()
        self.uniform = None if uniform is None else uniform.to(dtype).contiguous()
        self.similarity = SimilarityMixture.unpack(similarity, temperature)

    def parts(self) -> list[slice | None]:
        """Return None for the whole batch, or pieces of it."""
        rows = self.logits.shape[0]
        if self.similarity is None:
            return [None]
        size = max(1, default_chunk_bytes(self.logits.device) // self.similarity.row_bytes)
        return [slice(start, min(start + size, rows)) for start in range(0, max(rows, 1), size)]

    def rows(self, part: slice | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return logits and entries of some rows."""
        uniform = None if self.uniform is None else _part(self.uniform, part)
        return _part(self.logits, part), _part(self.indices, part), _part(self.weights, part), uniform

    def dense(self, part: slice | None) -> DenseRows | None:
        """Return the dense rows that these rows mix, computed now."""
        if self.similarity is None or part is None:
            return None
        return self.similarity.dense_rows(part, self.weights.dtype)


def _forward(
    logits: Tensor, indices: Tensor, weights: Tensor, uniform: Tensor | None,
    similarity: list[Tensor], temperature: list[float],
    label_smoothing: float, entropy: float, z_loss: float, logit_scale: float, softcap: float,
    reduction: str, impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    options = RowOptions(label_smoothing, entropy, z_loss, logit_scale, softcap)
    problem = _Problem(logits, indices, weights, uniform, similarity, temperature)
    forward = implementation(impl).sparse_cross_entropy_forward
    loss, lse, row_entropy, mass = joined(
        [forward(*problem.rows(part), options, problem.dense(part)) for part in problem.parts()]
    )
    loss, scale = reduce(loss, mass, reduction, implementation(impl).mean)
    return loss, lse, row_entropy, scale


def _forward_fake(
    logits: Tensor, indices: Tensor, weights: Tensor, uniform: Tensor | None,
    similarity: list[Tensor], temperature: list[float],
    label_smoothing: float, entropy: float, z_loss: float, logit_scale: float, softcap: float,
    reduction: str, impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    del indices, weights, uniform, similarity, temperature
    del label_smoothing, z_loss, logit_scale, softcap, impl
    rows, dtype = logits.shape[0], accumulator_dtype(logits.dtype)
    loss = logits.new_empty(rows if reduction == "none" else (), dtype=dtype)
    scale = logits.new_empty(() if reduction == "mean" else 0, dtype=dtype)
    row_entropy = logits.new_empty(rows if entropy else 0, dtype=dtype)
    return loss, logits.new_empty(rows, dtype=torch.float64), row_entropy, scale


def _backward_into(
    out: Tensor, grad: Tensor, scale: Tensor | None, problem: _Problem, lse: Tensor, row_entropy: Tensor,
    mass: Tensor | None, options: RowOptions, impl: str,
) -> None:  # fmt: skip
    dtype = problem.weights.dtype
    grad = grad.to(dtype).contiguous()
    mass = None if mass is None else mass.to(dtype).contiguous()
    for part in problem.parts():
        logits, *entries = problem.rows(part)
        implementation(impl).sparse_cross_entropy_backward(
            grad if grad.numel() == 1 else _part(grad, part), logits, _part(lse, part),
            _part(row_entropy, part) if options.entropy else row_entropy, *entries, options, _part(out, part),
            mass if mass is None else _part(mass, part), problem.dense(part), scale,
        )  # fmt: skip


def _backward(
    grad: Tensor, scale: Tensor | None, logits: Tensor, lse: Tensor, row_entropy: Tensor,
    indices: Tensor, weights: Tensor, uniform: Tensor | None, similarity: list[Tensor], temperature: list[float],
    mass: Tensor | None,
    label_smoothing: float, entropy: float, z_loss: float, logit_scale: float, softcap: float, impl: str,
) -> Tensor:  # fmt: skip
    out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    options = RowOptions(label_smoothing, entropy, z_loss, logit_scale, softcap)
    problem = _Problem(logits, indices, weights, uniform, similarity, temperature, checked=True)
    _backward_into(out, grad, scale, problem, lse, row_entropy, mass, options, impl)
    return out


def _backward_inplace(
    grad: Tensor, scale: Tensor | None, logits: Tensor, lse: Tensor, row_entropy: Tensor,
    indices: Tensor, weights: Tensor, uniform: Tensor | None, similarity: list[Tensor], temperature: list[float],
    label_smoothing: float, entropy: float, z_loss: float, logit_scale: float, softcap: float, impl: str,
) -> None:  # fmt: skip
    options = RowOptions(label_smoothing, entropy, z_loss, logit_scale, softcap)
    problem = _Problem(logits, indices, weights, uniform, similarity, temperature, checked=True)
    _backward_into(logits, grad, scale, problem, lse, row_entropy, None, options, impl)


def _backward_fake(grad: Tensor, scale: Tensor | None, logits: Tensor, *rest: Any) -> Tensor:
    del grad, scale, rest
    return logits.new_empty(logits.shape)


def _backward_inplace_fake(*arguments: Any) -> None:
    del arguments


forward_op = define(
    f"sparse_cross_entropy(Tensor logits, {TARGET_SCHEMA}, {OPTIONS_SCHEMA}, str reduction, str impl)"
    " -> (Tensor loss, Tensor lse, Tensor row_entropy, Tensor scale)",
    _forward,
    _forward_fake,
)
backward_op = define(
    "sparse_cross_entropy_backward(Tensor grad, Tensor? scale, Tensor logits, Tensor lse, Tensor row_entropy,"
    f" {TARGET_SCHEMA}, Tensor? mass, {OPTIONS_SCHEMA}, str impl) -> Tensor",
    _backward,
    _backward_fake,
)
backward_inplace_op = define(
    "sparse_cross_entropy_backward_(Tensor grad, Tensor? scale, Tensor(a!) logits, Tensor lse, Tensor row_entropy,"
    f" {TARGET_SCHEMA}, {OPTIONS_SCHEMA}, str impl) -> ()",
    _backward_inplace,
    _backward_inplace_fake,
)


class SparseCrossEntropy(torch.autograd.Function):
    """Loss of logits ``(N, V)`` against a sparse target, reduced; differentiable once in the logits."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, indices: Tensor, weights: Tensor, uniform: Tensor | None,
        similarity: list[Tensor], temperature: list[float],
        options: RowOptions, reduction: str, inplace: bool, impl: str,
    ) -> Tensor:  # fmt: skip
        """Compute the loss; the backward recomputes the probabilities from the saved ``lse``."""
        target = (indices, weights, uniform, similarity, temperature)
        loss, lse, row_entropy, scale = forward_op(logits, *target, *options, reduction, impl)
        ctx.save_for_backward(logits, indices, weights, uniform, lse, row_entropy, scale, *similarity)
        ctx.temperature, ctx.options, ctx.inplace, ctx.impl = temperature, options, inplace, impl
        ctx.is_mean, ctx.consumed = reduction == "mean", False
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the logits, in their own storage where that was allowed."""
        if ctx.consumed:
            raise RuntimeError("backward a second time: the logits were overwritten by their gradient (inplace=True)")
        logits, indices, weights, uniform, lse, row_entropy, scale, *similarity = ctx.saved_tensors
        with torch.no_grad():
            target = (indices, weights, uniform, similarity, ctx.temperature)
            saved = (grad, scale if ctx.is_mean else None, logits, lse, row_entropy, *target)
            if ctx.inplace:
                ctx.consumed = True
                backward_inplace_op(*saved, *ctx.options, ctx.impl)
                # Whoever saved the logits for a backward of their own must hear of it.
                torch.autograd.graph.increment_version(logits)
                d_logits = logits.detach()
            else:
                d_logits = backward_op(*saved, None, *ctx.options, ctx.impl)
        return *differentiable_once([d_logits], logits, grad), *(None,) * 9
