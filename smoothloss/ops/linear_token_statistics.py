"""Token statistics of hidden states: ``linear`` and statistics together, never holding the (N, V) logits.

The forward computes the logits once, the backward a second time, both chunk of rows by chunk of rows: 8 N V D in all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from smoothloss import backends
from smoothloss.backends.common import RowOptions, StatisticsGradients, TokenStatistics
from smoothloss.ops.linear_cross_entropy import (
    HOW_SCHEMA,
    LINEAR_SCHEMA,
    Linear,
    fake_gradients,
    reference_logits,
    wanted_gradients,
)
from smoothloss.ops.linear_layer import GradientSums, LinearLayer
from smoothloss.ops.register import define
from smoothloss.ops.token_statistics import (
    GRADIENTS_SCHEMA,
    STATISTICS_SCHEMA,
    TRANSFORM_SCHEMA,
    accumulated,
    batched,
    fake_statistics,
    reference_statistics,
    transform_of,
)
from smoothloss.ops.transforms import apply, differentiable_once, is_batched, is_eager


def linear_token_statistics(
    inputs: Tensor, linear: Linear, indices: Tensor, options: RowOptions, impl: str
) -> TokenStatistics:
    """Return the statistics of hidden states ``(N, D)`` at indices ``(N, S)`` from the implementation `impl`."""
    if impl == "reference":
        return reference_statistics(reference_logits(inputs, linear), indices, options)
    weight, bias = linear.weight, linear.bias
    wanted = wanted_gradients(inputs, weight, bias)
    how = How(options, linear.budget(), wanted, impl)
    if not is_eager(inputs, weight, bias, indices):
        return TokenStatistics(*forward_op(inputs, weight, bias, indices, *how.pack())[:-1])
    if not any(wanted):
        return _forward(inputs, weight, bias, indices, how)[0]
    return TokenStatistics(*apply(_LinearTokenStatistics, inputs, weight, bias, indices, how))


class How(NamedTuple):
    """Everything about a call but its tensors."""

    options: RowOptions
    chunk_bytes: int
    wanted: list[bool]
    impl: str

    def pack(self) -> tuple[Any, ...]:
        """Return it as the operators take it."""
        return *transform_of(self.options), self.chunk_bytes, self.wanted, self.impl

    @classmethod
    def unpack(cls, logit_scale: float, softcap: float, chunk_bytes: int, wanted: list[bool], impl: str) -> How:
        """Return what `pack` packed."""
        return cls(RowOptions(logit_scale=logit_scale, softcap=softcap), chunk_bytes, wanted, impl)


def _forward(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, indices: Tensor, how: How
) -> tuple[TokenStatistics, Tensor]:
    layer, slots = LinearLayer(inputs, weight, bias), indices.contiguous()
    layout = layer.layout(how.chunk_bytes, with_gradient=False)
    scratch = layer.scratch(layout.logits_rows, layer.num_classes, layer.accumulator)
    kernels = backends.kernels(how.impl)
    results = []
    for part in layout.parts(layer.num_rows):
        statistics, saved = kernels.token_statistics(layer.logits(part, scratch), slots[part], how.options)
        assert saved is not None
        results.append((*statistics, saved))
    *whole, saved = results[0] if len(results) == 1 else map(torch.cat, zip(*results, strict=True))
    return TokenStatistics(*whole), saved


def _backward(
    grads: StatisticsGradients, inputs: Tensor, weight: Tensor, bias: Tensor | None, indices: Tensor, saved: Tensor,
    how: How,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    d_inputs, d_weight, d_bias = wide_gradients(grads, LinearLayer(inputs, weight, bias), indices, saved, how)
    return d_inputs.to(inputs.dtype), d_weight.to(inputs.dtype), d_bias.to(inputs.dtype)


def wide_gradients(
    grads: StatisticsGradients, layer: LinearLayer, indices: Tensor, saved: Tensor, how: How
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of hidden states, weight and bias before they are rounded to the dtype of the layer."""
    slots = indices.contiguous()
    grads = accumulated(grads, layer.accumulator)
    live = live_rows(grads, slots, layer.num_classes)
    if live.device.type != "cpu" or not live.all():
        layer.ignore(live)
    factor = _largest(grads) if layer.compute == torch.float16 and layer.num_rows else None
    if factor is not None:  # in half precision the gradients would underflow
        grads = _divided(grads, factor)
    layout, kernels = layer.layout(how.chunk_bytes, with_gradient=True), backends.kernels(how.impl)
    sums = GradientSums(layer, how.wanted, -(-layer.num_rows // layout.grad_rows))
    scratch = layer.scratch(layout.logits_rows, layer.num_classes, layer.accumulator)
    is_narrow = layer.compute != layer.accumulator
    grad_scratch = layer.scratch(layout.grad_rows, layer.num_classes, layer.compute) if is_narrow else scratch
    for chunk in layout.chunks(layer.num_rows):
        for part, place in chunk.parts:
            logits, d_logits = layer.logits(part, scratch), grad_scratch[place]
            own = StatisticsGradients(*(None if grad is None else grad[part] for grad in grads))
            kernels.token_statistics_backward(own, logits, slots[part], saved[part], how.options, d_logits)
            sums.add_part(part, d_logits)
        sums.add_chunk(chunk.rows, grad_scratch[: chunk.rows.stop - chunk.rows.start])
    d_inputs, d_weight, d_bias = (
        result if factor is None else result * factor.to(result.dtype) for result in sums.results()
    )
    return d_inputs, d_weight, d_bias


def live_rows(grads: StatisticsGradients, indices: Tensor, num_classes: int) -> Tensor:
    """Return which rows anything comes back for: the others' hidden states must not matter, NaN times 0 would."""
    live = torch.zeros(indices.shape[0], dtype=torch.bool, device=indices.device)
    if grads.log_prob is not None:
        live |= ((grads.log_prob != 0) & (indices >= 0) & (indices < num_classes)).any(-1)
    for grad in grads[1:]:
        if grad is not None:
            live |= grad != 0
    return live


def _largest(grads: StatisticsGradients) -> Tensor:
    present = [grad for grad in grads if grad is not None]
    peaks = [grad.abs().amax() for grad in present if grad.numel()]
    peak = torch.stack(peaks).amax() if peaks else present[0].new_ones(())
    return peak.clamp(min=torch.finfo(peak.dtype).tiny)


def _divided(grads: StatisticsGradients, factor: Tensor) -> StatisticsGradients:
    return StatisticsGradients(*(None if grad is None else grad / factor for grad in grads))


class _LinearTokenStatistics(torch.autograd.Function):
    """The node of eager code."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, indices: Tensor, how: How
    ) -> TokenStatistics:
        statistics, saved = _forward(inputs, weight, bias, indices, how)
        ctx.save_for_backward(inputs, weight, bias, indices, saved)
        ctx.mark_non_differentiable(statistics.argmax)
        ctx.set_materialize_grads(False)
        ctx.how = how
        return statistics

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor | None) -> tuple[Tensor | None, ...]:
        grads = StatisticsGradients(*incoming[:4])
        given = [grad for grad in grads if grad is not None]
        if not given:
            return None, None, None, None, None
        inputs, weight, bias, indices, saved = ctx.saved_tensors
        if any(map(is_batched, given)):
            return *_batched(grads, inputs, weight, bias, indices, ctx.how), None, None
        with torch.no_grad():
            results = _backward(grads, inputs, weight, bias, indices, saved, ctx.how)
        wanted = [result if use else None for result, use in zip(results, ctx.how.wanted, strict=True)]
        return *differentiable_once(wanted, inputs, weight, bias, *given), None, None


def _batched(
    grads: StatisticsGradients, inputs: Tensor, weight: Tensor, bias: Tensor | None, indices: Tensor, how: How
) -> list[Tensor | None]:
    def statistics(*leaves: Tensor) -> TokenStatistics:
        linear = Linear(leaves[1], leaves[2] if bias is not None else None)
        return reference_statistics(reference_logits(leaves[0], linear), indices, how.options)

    results = iter(batched(grads, statistics, [inputs, weight] if bias is None else [inputs, weight, bias]))
    given = [next(results), next(results), None if bias is None else next(results)]
    return [result if use else None for result, use in zip(given, how.wanted, strict=True)]


# ---- as torch operators


def _forward_impl(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, indices: Tensor, *packed: Any
) -> tuple[Tensor, ...]:
    statistics, saved = _forward(inputs, weight, bias, indices, How.unpack(*packed))
    return *statistics, saved


def _forward_fake(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, indices: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    del weight, bias, rest
    return fake_statistics(inputs, indices)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, logit_scale, softcap, chunk_bytes, wanted, impl = inputs
    ctx.save_for_backward(*tensors, output[-1])
    ctx.mark_non_differentiable(output[4])
    ctx.set_materialize_grads(False)
    ctx.packed = logit_scale, softcap, chunk_bytes, wanted, impl


def _backward_of_op(ctx: Any, *incoming: Tensor | None) -> tuple[Any, ...]:
    grads, rest = incoming[:4], (None,) * 6
    if all(grad is None for grad in grads):
        return None, None, None, *rest
    results = backward_op(*grads, *ctx.saved_tensors, *ctx.packed)
    wanted = ctx.packed[-2]
    return *(result if use else None for result, use in zip(results, wanted, strict=True)), *rest


def _backward_impl(
    grad_log_prob: Tensor | None, grad_log_rest: Tensor | None, grad_entropy: Tensor | None,
    grad_logsumexp: Tensor | None, inputs: Tensor, weight: Tensor, bias: Tensor | None, indices: Tensor,
    saved: Tensor, *packed: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grads = StatisticsGradients(grad_log_prob, grad_log_rest, grad_entropy, grad_logsumexp)
    return _backward(grads, inputs, weight, bias, indices, saved, How.unpack(*packed))


def _backward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs, weight, wanted = arguments[4], arguments[5], arguments[-2]
    return fake_gradients(inputs, weight, wanted, inputs.dtype)


forward_op = define(
    f"linear_token_statistics({LINEAR_SCHEMA}, Tensor indices, {TRANSFORM_SCHEMA}, {HOW_SCHEMA})"
    f" -> {STATISTICS_SCHEMA}",
    _forward_impl,
    _forward_fake,
    backward=_backward_of_op,
    setup_context=_setup_context,
)
backward_op = define(
    f"linear_token_statistics_backward({GRADIENTS_SCHEMA}, {LINEAR_SCHEMA}, Tensor indices, Tensor saved,"
    f" {TRANSFORM_SCHEMA}, {HOW_SCHEMA}) -> (Tensor, Tensor, Tensor)",
    _backward_impl,
    _backward_fake,
)
