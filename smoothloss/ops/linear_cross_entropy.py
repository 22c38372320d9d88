"""The primitive on hidden states: ``linear`` and loss together, never holding the (N, V) logits.

* Fast: "mean" and "sum" make the gradients in the forward, for an incoming gradient of one, chunk of rows by chunk of
  rows: one GEMM for the logits, two for the gradients (6 N V D). The backward multiplies by the true one.
* Low memory: the forward makes the loss alone; the backward computes the logits again, slice of the vocabulary by slice
  of the vocabulary (8 N V D in all). Each slice of the weight's gradient is written once, so that there is no float32
  sum of the size of the weight. It is also how "none" is done, whose incoming gradients differ from row to row.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from smoothloss import backends
from smoothloss.backends.common import RowOptions, accumulator_dtype, without_autocast
from smoothloss.ops.cross_entropy import backward as backward_of_logits
from smoothloss.ops.cross_entropy import reference_loss
from smoothloss.ops.linear_layer import default_chunk_bytes, gradient_dtype
from smoothloss.ops.linear_passes import fused, losses, recomputed
from smoothloss.ops.register import OPTIONS_SCHEMA, TARGET_SCHEMA, define, no_gradients
from smoothloss.ops.target import FlatTarget
from smoothloss.ops.transforms import apply, differentiable_once, is_batched, is_eager


class Linear(NamedTuple):
    """The classifier: ``weight (V, D)``, ``bias (V,)`` or None, and how it uses memory.

    Attributes:
        chunk_bytes: size of the scratch, or None for the default of the device.
        memory: "fast" or "low".
        group: the processes over which the classes are split, or None.
        scatters: the gradient of the hidden states is wanted as each of these processes' part of it.
        tail: what leaving out improbable classes may err, see `smoothloss.ops.compensated`; None: none is left out.
    """

    weight: Tensor
    bias: Tensor | None
    chunk_bytes: int | None = None
    memory: str = "fast"
    group: Any = None
    scatters: bool = False
    tail: float | None = None

    def budget(self) -> int:
        """Return the size of the scratch."""
        return default_chunk_bytes(self.weight.device) if self.chunk_bytes is None else self.chunk_bytes


def linear_cross_entropy(
    inputs: Tensor, linear: Linear, target: FlatTarget, options: RowOptions, reduction: str, impl: str
) -> Tensor:
    """Return the loss of hidden states ``(N, D)``, of each row or reduced, from the implementation `impl`."""
    weight, bias = linear.weight, linear.bias
    if impl == "reference":
        if linear.tail is not None:
            raise ValueError("tail: got 'compensated' where the reference runs, expected 'exact'")
        return reference_loss(reference_logits(inputs, linear, target), target, options, reduction)
    wanted = wanted_gradients(inputs, weight, bias)
    # Without gradients there is nothing to make in the forward but the loss.
    recompute = reduction == "none" or linear.memory == "low" or not any(wanted)
    how = (linear.budget(), wanted, impl)
    if is_eager(inputs, weight, bias, target.indices, target.weights):
        if not any(wanted):
            return losses(inputs, weight, bias, target, options, reduction, *how[::2]).loss
        if recompute:
            return apply(_LinearCrossEntropyRecompute, inputs, weight, bias, (target, options, reduction, *how))
        return apply(_LinearCrossEntropy, inputs, weight, bias, (target, options, reduction, *how, linear.tail))
    operator, more = (recompute_op, ()) if recompute else (fused_op, (linear.tail,))
    loss: Tensor = operator(inputs, weight, bias, *target.pack(), [*options], reduction, *how, *more)[0]
    return loss


def reference_logits(inputs: Tensor, linear: Linear, target: FlatTarget | None = None) -> Tensor:
    """Return the logits in the accumulator dtype like the kernels'; of rows without mass those of zeros."""
    dtype = accumulator_dtype(inputs.dtype)
    bias = None if linear.bias is None else linear.bias.to(dtype)
    inputs = inputs.to(dtype)
    if target is not None:
        inputs = inputs.where(target.mass(linear.weight.shape[0], dtype).unsqueeze(-1) != 0, 0.0)
    with without_autocast(inputs.device.type):
        return torch.nn.functional.linear(inputs, linear.weight.to(dtype), bias)


def wanted_gradients(*tensors: Tensor | None) -> list[bool]:
    """Return for which of (inputs, weight, bias) a gradient is asked for."""
    enabled = torch.is_grad_enabled()
    return [enabled and tensor is not None and tensor.requires_grad for tensor in tensors]


# ---- the nodes of eager code


# Everything about a call but its tensors is one argument: each costs time of its own.
_Call = tuple[FlatTarget, RowOptions, str, int, list[bool], str]
_FusedCall = tuple[FlatTarget, RowOptions, str, int, list[bool], str, float | None]


class _LinearCrossEntropy(torch.autograd.Function):
    """Reduced ("mean", "sum") loss of ``inputs @ weight.T + bias``; the gradients are made in the forward."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, call: _FusedCall) -> Tensor:
        loss, scale, *grads = fused(inputs, weight, bias, *call)
        ctx.save_for_backward(scale, inputs, weight, bias, *grads)
        *_, ctx.wanted, ctx.impl, _ = call
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale, inputs, weight, bias, *grads = ctx.saved_tensors
        are_several = is_batched(grad)
        with torch.no_grad():
            factor = grad * scale
            copy = _scaled_copy if are_several or not is_eager(factor) else backends.kernels(ctx.impl).scaled_copy
            scaled = _scaled(copy, factor, grads, (inputs, weight, bias), ctx.wanted)
        return *differentiable_once(scaled, inputs, weight, bias, grad), None


def _scaled(
    copy: Callable[[Tensor, Tensor, torch.dtype], Tensor], factor: Tensor, grads: list[Tensor],
    like: tuple[Tensor | None, ...], wanted: list[bool],
) -> list[Tensor | None]:  # fmt: skip
    """Scale the saved gradients, in the accumulator dtype, and only then round them."""
    return [
        copy(saved, factor, tensor.dtype) if use and tensor is not None else None
        for saved, tensor, use in zip(grads, like, wanted, strict=True)
    ]


def _scaled_copy(values: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    return (values * factor).to(dtype)


class _LinearCrossEntropyRecompute(torch.autograd.Function):
    """Loss of ``inputs @ weight.T + bias``, of every row or reduced; the backward computes the logits again."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, call: _Call) -> Tensor:
        target, options, reduction, chunk_bytes, wanted, impl = call
        loss, statistics, _, scale = losses(inputs, weight, bias, target, options, reduction, chunk_bytes, impl)
        indices, weights, uniform, prior, source, settings, ignore_index = target.pack()
        ctx.save_for_backward(inputs, weight, bias, statistics, scale, indices, weights, uniform, prior, *source)
        ctx.settings, ctx.options = (settings, ignore_index), options
        ctx.chunk_bytes, ctx.wanted, ctx.impl = chunk_bytes, wanted, impl
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, bias, statistics, scale, indices, weights, uniform, prior, *source = ctx.saved_tensors
        target = FlatTarget.unpack(indices, weights, uniform, prior, source, *ctx.settings)
        how = (None, ctx.options, ctx.chunk_bytes, ctx.wanted, ctx.impl)
        are_several = is_batched(grad)
        with torch.no_grad():
            if are_several:
                saved = (scale, inputs, weight, bias, statistics, target)
                with without_autocast(inputs.device.type):
                    return *_batched(grad, *saved, ctx.options, ctx.wanted, ctx.impl), None
            grads = recomputed(grad, scale, inputs, weight, bias, statistics, target, *how)
        return *differentiable_once(_cast(grads, ctx.wanted), inputs, weight, bias, grad), None


def _batched(
    grad: Tensor, scale: Tensor | None, inputs: Tensor, weight: Tensor, bias: Tensor | None, statistics: Tensor,
    target: FlatTarget, options: RowOptions, wanted: list[bool], impl: str,
) -> list[Tensor | None]:  # fmt: skip
    """Return the gradients for several incoming ones, with all logits at once: torch knows the rules of the rest."""
    dtype = accumulator_dtype(inputs.dtype)
    inputs = inputs.where(target.mass(weight.shape[0], dtype).unsqueeze(-1) != 0, 0.0)
    logits = torch.nn.functional.linear(inputs.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
    backward_of_logits(logits.new_ones(()), scale, logits, statistics, target, options, logits, impl)
    d_logits = logits * (grad if grad.dim() == 0 else grad.unsqueeze(-1))
    return [
        (d_logits @ weight.to(dtype)).to(inputs.dtype) if wanted[0] else None,
        (d_logits.transpose(-1, -2) @ inputs.to(dtype)).to(weight.dtype) if wanted[1] else None,
        d_logits.sum(-2).to(weight.dtype) if wanted[2] else None,
    ]


def _cast(grads: tuple[Tensor, ...], wanted: list[bool]) -> list[Tensor | None]:
    return [grad if use else None for grad, use in zip(grads, wanted, strict=True)]


# ---- as torch operators


def _fused_impl(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, indices: Tensor, weights: Tensor | None,
    uniform: Tensor | None,
    prior: Tensor | None, source: list[Tensor], settings: list[float], ignore_index: int | None,
    options: list[float], reduction: str, chunk_bytes: int, wanted: list[bool], impl: str, tail: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    target = FlatTarget.unpack(indices, weights, uniform, prior, source, settings, ignore_index)
    return fused(inputs, weight, bias, target, RowOptions(*options), reduction, chunk_bytes, wanted, impl, tail)


def _fused_fake(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    del bias
    scale = inputs.new_empty((), dtype=accumulator_dtype(inputs.dtype))
    grads = fake_gradients(inputs, weight, rest[-3], gradient_dtype(inputs.device.type, inputs.dtype))
    return scale.new_empty(()), scale, *grads


def fake_gradients(
    inputs: Tensor, weight: Tensor, wanted: list[bool], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the gradients of inputs, weight and bias look like: empty where they are not wanted."""
    shapes = (inputs.shape, weight.shape, weight.shape[:1])
    grads = [inputs.new_empty(shape if use else (0,), dtype=dtype) for shape, use in zip(shapes, wanted, strict=True)]
    return grads[0], grads[1], grads[2]


def _fused_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, bias, *_, wanted, impl, _ = inputs
    _, scale, *grads = output
    ctx.save_for_backward(scale, hidden, weight, bias, *grads)
    ctx.wanted, ctx.impl, ctx.sources = wanted, impl, (len(inputs[7]), len(inputs[8]))


def _fused_backward(ctx: Any, grad: Tensor, *unused: Any) -> tuple[Any, ...]:
    del unused
    scale, inputs, weight, bias, *grads = ctx.saved_tensors
    sources = (inputs, weight, bias)
    # A compiler's graph, in which torch refuses a second gradient by itself, may fuse the multiplication.
    copy = _scaled_copy if torch._C._len_torch_dispatch_stack() else partial(_scaled_once, sources, ctx.impl)
    return *_scaled(copy, grad * scale, grads, sources, ctx.wanted), *no_gradients(ctx.sources, 6)


def _scaled_once(
    sources: tuple[Tensor, Tensor, Tensor | None], impl: str, values: Tensor, factor: Tensor, dtype: torch.dtype
) -> Tensor:
    """Return ``values * factor``, which depends on what the values were computed from and refuses to say how."""
    scaled: Tensor = scaled_op(values, factor, *sources, dtype, impl)
    return scaled


def _scaled_impl(
    values: Tensor, factor: Tensor, inputs: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, impl: str
) -> Tensor:
    del inputs, weight, bias
    return backends.kernels(impl).scaled_copy(values, factor, dtype)


def _scaled_fake(values: Tensor, factor: Tensor, *rest: Any) -> Tensor:
    del factor
    return values.new_empty(values.shape, dtype=rest[-2])


def _recompute_impl(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, indices: Tensor, weights: Tensor | None,
    uniform: Tensor | None,
    prior: Tensor | None, source: list[Tensor], settings: list[float], ignore_index: int | None,
    options: list[float], reduction: str, chunk_bytes: int, wanted: list[bool], impl: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    del wanted
    target = FlatTarget.unpack(indices, weights, uniform, prior, source, settings, ignore_index)
    row = RowOptions(*options)
    loss, statistics, _, scale = losses(inputs, weight, bias, target, row, reduction, chunk_bytes, impl)
    assert statistics is not None
    return loss, statistics, loss.new_empty(0) if scale is None else scale


def _recompute_fake(inputs: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    rows, dtype, is_rows = inputs.shape[0], accumulator_dtype(inputs.dtype), rest[-4] == "none"
    loss = inputs.new_empty(rows if is_rows else (), dtype=dtype)
    return loss, inputs.new_empty((rows, 3), dtype=dtype), inputs.new_empty(0 if is_rows else (), dtype=dtype)


def _recompute_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, bias, indices, weights, uniform, prior, source, settings, ignore_index, *rest = inputs
    options, reduction, chunk_bytes, wanted, impl = rest
    _, statistics, scale = output
    saved = (statistics, scale if reduction != "none" else None)
    ctx.save_for_backward(hidden, weight, bias, *saved, indices, weights, uniform, prior, *source)
    ctx.settings, ctx.options, ctx.sources = (settings, ignore_index), options, (len(source), len(settings))
    ctx.chunk_bytes, ctx.wanted, ctx.impl = chunk_bytes, wanted, impl


def _recompute_backward(ctx: Any, grad: Tensor, *unused: Any) -> tuple[Any, ...]:
    del unused
    inputs, weight, bias, statistics, scale, indices, weights, uniform, prior, *source = ctx.saved_tensors
    grads = backward_op(
        grad, scale, inputs, weight, bias, statistics, indices, weights, uniform, prior, source, *ctx.settings,
        None, ctx.options, ctx.chunk_bytes, ctx.wanted, ctx.impl,
    )  # fmt: skip
    return *_cast(grads, ctx.wanted), *no_gradients(ctx.sources, 5)


def _backward(
    grad: Tensor, scale: Tensor | None, inputs: Tensor, weight: Tensor, bias: Tensor | None, statistics: Tensor,
    indices: Tensor, weights: Tensor | None, uniform: Tensor | None,
    prior: Tensor | None, source: list[Tensor], settings: list[float],
    ignore_index: int | None, mass: Tensor | None, options: list[float],
    chunk_bytes: int, wanted: list[bool], impl: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    target = FlatTarget.unpack(indices, weights, uniform, prior, source, settings, ignore_index)
    how = (RowOptions(*options), chunk_bytes, wanted, impl)
    return recomputed(grad, scale, inputs, weight, bias, statistics, target, mass, *how)


def _backward_fake(
    grad: Tensor, scale: Tensor | None, inputs: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    del grad, scale, bias
    return fake_gradients(inputs, weight, rest[-2], inputs.dtype)


LINEAR_SCHEMA = "Tensor inputs, Tensor weight, Tensor? bias"
HOW_SCHEMA = "int chunk_bytes, bool[] wanted, str impl"
fused_op = define(
    f"linear_cross_entropy_with_gradients({LINEAR_SCHEMA}, {TARGET_SCHEMA}, {OPTIONS_SCHEMA}, str reduction,"
    f" {HOW_SCHEMA}, float? tail) -> (Tensor loss, Tensor scale, Tensor, Tensor, Tensor)",
    _fused_impl,
    _fused_fake,
    backward=_fused_backward,
    setup_context=_fused_context,
)
scaled_op = define(
    f"linear_cross_entropy_scaled(Tensor values, Tensor factor, {LINEAR_SCHEMA}, ScalarType dtype, str impl) -> Tensor",
    _scaled_impl,
    _scaled_fake,
)
recompute_op = define(
    f"linear_cross_entropy({LINEAR_SCHEMA}, {TARGET_SCHEMA}, {OPTIONS_SCHEMA}, str reduction, {HOW_SCHEMA})"
    " -> (Tensor loss, Tensor statistics, Tensor scale)",
    _recompute_impl,
    _recompute_fake,
    backward=_recompute_backward,
    setup_context=_recompute_context,
)
backward_op = define(
    f"linear_cross_entropy_backward(Tensor grad, Tensor? scale, {LINEAR_SCHEMA}, Tensor statistics,"
    f" {TARGET_SCHEMA}, Tensor? mass, {OPTIONS_SCHEMA}, {HOW_SCHEMA}) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
