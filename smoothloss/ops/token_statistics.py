"""Token statistics of logits: which implementation runs, a node for eager code, torch operators for everything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from smoothloss import backends
from smoothloss.backends.common import (
    SAVED_STATISTICS,
    RowOptions,
    StatisticsGradients,
    TokenStatistics,
    accumulator_dtype,
    without_autocast,
)
from smoothloss.ops.checks import checked_op
from smoothloss.ops.cross_entropy import new_gradient
from smoothloss.ops.register import define
from smoothloss.ops.transforms import apply, differentiable_once, is_batched, is_eager


def token_statistics(logits: Tensor, indices: Tensor, options: RowOptions, impl: str) -> TokenStatistics:
    """Return the statistics of logits ``(N, V)`` at indices ``(N, S)`` from the implementation `impl`."""
    if impl == "reference":
        return reference_statistics(logits, indices, options)
    if not is_eager(logits, indices):
        return TokenStatistics(*forward_op(logits, indices, *transform_of(options), impl)[:-1])
    if not (torch.is_grad_enabled() and logits.requires_grad):
        return forward(logits, indices, options, impl)[0]
    return TokenStatistics(*apply(_TokenStatistics, logits, indices, (options, impl)))


def reference_statistics(logits: Tensor, indices: Tensor, options: RowOptions) -> TokenStatistics:
    """Return the statistics in plain torch code, which autograd and every transform see through."""
    if torch.compiler.is_compiling():  # nobody else could say that an index is out of range
        indices = checked_op(indices, logits.shape[-1], None)
    with without_autocast(logits.device.type):
        return backends.get("reference").token_statistics(logits, indices, options)[0]


def transform_of(options: RowOptions) -> tuple[float, float]:
    """Return the options that count here, as the operators take them (`TRANSFORM_SCHEMA`)."""
    return options.logit_scale, options.softcap


def forward(logits: Tensor, indices: Tensor, options: RowOptions, impl: str) -> tuple[TokenStatistics, Tensor]:
    """Return what an implementation's forward does, for any layout."""
    if logits.stride(-1) != 1:
        logits = logits.contiguous()
    statistics, saved = backends.kernels(impl).token_statistics(logits, indices.contiguous(), options)
    assert saved is not None
    return statistics, saved


def backward(
    grads: StatisticsGradients, logits: Tensor, indices: Tensor, saved: Tensor, options: RowOptions, out: Tensor,
    impl: str,
) -> None:  # fmt: skip
    """Write the gradient of the logits to `out`, for any layout of anything."""
    if logits.stride(-1) != 1:
        logits = logits.contiguous()
    wide = accumulated(grads, accumulator_dtype(logits.dtype))
    backends.kernels(impl).token_statistics_backward(wide, logits, indices.contiguous(), saved, options, out)


def accumulated(grads: StatisticsGradients, dtype: torch.dtype) -> StatisticsGradients:
    """Return incoming gradients as the kernels take them."""
    return StatisticsGradients(*(None if grad is None else grad.to(dtype).contiguous() for grad in grads))


def batched(
    grads: StatisticsGradients, statistics: Callable[[Tensor], TokenStatistics], sources: list[Tensor]
) -> tuple[Tensor, ...]:
    """Return the gradients for several incoming ones at once, through plain torch code, for which torch has the rules.

    Args:
        grads: what comes back, some of it several times.
        statistics: the statistics of leaves with the values of the sources.
        sources: what they are to be differentiated in.
    """
    with torch.enable_grad(), without_autocast(sources[0].device.type):
        leaves = [source.detach().requires_grad_() for source in sources]
        outputs = statistics(*leaves)
        pairs = [(output, grad) for output, grad in zip(outputs, grads, strict=False) if grad is not None]
        return torch.autograd.grad([output for output, _ in pairs], leaves, [grad for _, grad in pairs])


class _TokenStatistics(torch.autograd.Function):
    """The node of eager code; the backward recomputes the probabilities from what was saved."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, indices: Tensor, call: tuple[RowOptions, str]) -> TokenStatistics:
        ctx.options, ctx.impl = call
        statistics, saved = forward(logits, indices, *call)
        ctx.save_for_backward(logits, indices, saved)
        ctx.mark_non_differentiable(statistics.argmax)
        ctx.set_materialize_grads(False)
        return statistics

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor | None) -> tuple[Tensor | None, ...]:
        grads = StatisticsGradients(*incoming[:4])
        given = [grad for grad in grads if grad is not None]
        if not given:
            return None, None, None
        logits, indices, saved = ctx.saved_tensors
        if any(map(is_batched, given)):
            return *batched(grads, lambda leaf: reference_statistics(leaf, indices, ctx.options), [logits]), None, None
        with torch.no_grad():
            d_logits = new_gradient(logits)
            backward(grads, logits, indices, saved, ctx.options, d_logits, ctx.impl)
        return *differentiable_once([d_logits], logits, *given), None, None


# ---- as torch operators

TRANSFORM_SCHEMA = "float logit_scale, float softcap"
STATISTICS_SCHEMA = "(Tensor log_prob, Tensor log_rest, Tensor entropy, Tensor logsumexp, Tensor argmax, Tensor saved)"
GRADIENTS_SCHEMA = "Tensor? log_prob, Tensor? log_rest, Tensor? entropy, Tensor? logsumexp"


def _forward(logits: Tensor, indices: Tensor, logit_scale: float, softcap: float, impl: str) -> tuple[Tensor, ...]:
    statistics, saved = forward(logits, indices, RowOptions(logit_scale=logit_scale, softcap=softcap), impl)
    return *statistics, saved


def fake_statistics(rows: Tensor, indices: Tensor) -> tuple[Tensor, ...]:
    """Return what the forward's results look like, for logits or hidden states."""
    number, dtype = rows.shape[0], accumulator_dtype(rows.dtype)
    numbers = [rows.new_empty(number, dtype=dtype) for _ in range(3)]
    argmax, saved = rows.new_empty(number, dtype=torch.int64), rows.new_empty((number, SAVED_STATISTICS), dtype=dtype)
    return rows.new_empty(indices.shape, dtype=dtype), *numbers, argmax, saved


def _forward_fake(logits: Tensor, indices: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    del rest
    return fake_statistics(logits, indices)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, indices, *ctx.how = inputs
    ctx.save_for_backward(logits, indices, output[-1])
    ctx.mark_non_differentiable(output[4])
    ctx.set_materialize_grads(False)


def _backward_of_op(ctx: Any, *incoming: Tensor | None) -> tuple[Any, ...]:
    grads = incoming[:4]
    if all(grad is None for grad in grads):
        return None, None, None, None, None
    return backward_op(*grads, *ctx.saved_tensors, *ctx.how), None, None, None, None


def _backward(
    grad_log_prob: Tensor | None, grad_log_rest: Tensor | None, grad_entropy: Tensor | None,
    grad_logsumexp: Tensor | None, logits: Tensor, indices: Tensor, saved: Tensor, logit_scale: float, softcap: float,
    impl: str,
) -> Tensor:  # fmt: skip
    grads = StatisticsGradients(grad_log_prob, grad_log_rest, grad_entropy, grad_logsumexp)
    out = new_gradient(logits)
    backward(grads, logits, indices, saved, RowOptions(logit_scale=logit_scale, softcap=softcap), out, impl)
    return out


def _backward_fake(*arguments: Any) -> Tensor:
    logits: Tensor = arguments[4]
    return logits.new_empty(logits.shape)


forward_op = define(
    f"token_statistics(Tensor logits, Tensor indices, {TRANSFORM_SCHEMA}, str impl) -> {STATISTICS_SCHEMA}",
    _forward,
    _forward_fake,
    backward=_backward_of_op,
    setup_context=_setup_context,
)
backward_op = define(
    f"token_statistics_backward({GRADIENTS_SCHEMA}, Tensor logits, Tensor indices, Tensor saved, {TRANSFORM_SCHEMA},"
    " str impl) -> Tensor",
    _backward,
    _backward_fake,
)
