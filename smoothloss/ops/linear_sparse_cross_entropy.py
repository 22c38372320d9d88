"""The primitive on hidden states: ``linear`` and loss together, never holding the (N, V) logits, as torch operators.

* Fast: "mean" and "sum" make the gradients in the forward, for an incoming gradient of one, chunk of rows by chunk of
  rows: one GEMM for the logits, two for the gradients (6 N V D). The backward multiplies by the true one.
* Low memory: the forward makes the loss alone; the backward computes the logits again, slice of the vocabulary by slice
  of the vocabulary (8 N V D in all). Each slice of the weight's gradient is written once, so that there is no float32
  sum of the size of the weight. It is also how "none" is done, whose incoming gradients differ from row to row.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from smoothloss.backends import implementation
from smoothloss.backends.common import DenseRows, RowOptions, accumulator_dtype, target_mass
from smoothloss.ops._register import OPTIONS_SCHEMA, TARGET_SCHEMA, define
from smoothloss.ops.checks import as_int32
from smoothloss.ops.linear_layer import ClassSums, GradientSums, LinearLayer, gradient_dtype
from smoothloss.ops.similarity_rows import SimilarityMixture
from smoothloss.ops.sparse_cross_entropy import joined, reduce


class LinearTarget(NamedTuple):
    """A target prepared for the kernels: int32 indices, everything else in the accumulator dtype."""

    indices: Tensor
    weights: Tensor
    uniform: Tensor | None
    similarity: SimilarityMixture | None

    def rows(self, part: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the entries of the rows `part`."""
        return self.indices[part], self.weights[part], None if self.uniform is None else self.uniform[part]

    def dense(self, part: slice) -> DenseRows | None:
        """Return the dense rows that the rows `part` mix, computed now."""
        return None if self.similarity is None else self.similarity.dense_rows(part, self.weights.dtype)

    def mass(self, num_classes: int) -> Tensor:
        """Return each row's mass ``(N,)``."""
        mass = target_mass(self.indices, self.weights, self.uniform, num_classes)
        if self.similarity is not None:
            tokens, weights = self.similarity.tokens, self.similarity.weights
            mass = mass + target_mass(tokens, weights.to(mass.dtype), None, num_classes)
        return mass


def _prepare(
    layer: LinearLayer, indices: Tensor, weights: Tensor, uniform: Tensor | None,
    similarity: list[Tensor], temperature: list[float], checked: bool = False,
) -> LinearTarget:  # fmt: skip
    dtype = layer.accumulator
    uniform = None if uniform is None else uniform.to(dtype).contiguous()
    mixture = SimilarityMixture.unpack(similarity, temperature)
    return LinearTarget(as_int32(indices, layer.num_classes, checked), weights.to(dtype).contiguous(), uniform, mixture)


def _budget(layer: LinearLayer, target: LinearTarget, chunk_bytes: int) -> int:
    """Return the part of the budget that is left for logits where dense rows want their share."""
    if target.similarity is None:
        return chunk_bytes
    logits_bytes = layer.num_classes * layer.accumulator.itemsize
    return chunk_bytes * logits_bytes // (logits_bytes + target.similarity.row_bytes)


def _fused(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, indices: Tensor, weights: Tensor, uniform: Tensor | None,
    similarity: list[Tensor], temperature: list[float],
    label_smoothing: float, entropy: float, z_loss: float, logit_scale: float, softcap: float,
    reduction: str, chunk_bytes: int, wanted: list[bool], impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Loss and unscaled gradients in one go."""
    options = RowOptions(label_smoothing, entropy, z_loss, logit_scale, softcap)
    layer = LinearLayer(inputs, weight, bias)
    target = _prepare(layer, indices, weights, uniform, similarity, temperature)
    layout, kernels = layer.layout(_budget(layer, target, chunk_bytes), with_gradient=True), implementation(impl)
    sums = GradientSums(layer, wanted, -(-layer.num_rows // layout.grad_rows))
    scratch = layer.scratch(layout.logits_rows, layer.num_classes, layer.accumulator)
    narrow = layer.compute != layer.accumulator
    grad_scratch = layer.scratch(layout.grad_rows, layer.num_classes, layer.compute) if narrow else scratch
    results = []
    for chunk in layout.chunks(layer.num_rows):
        for part, place in chunk.parts:
            logits = layer.logits(part, scratch)
            d_logits = grad_scratch[place]
            results.append(
                kernels.sparse_cross_entropy_forward_backward(
                    logits, *target.rows(part), options, d_logits, target.dense(part)
                )
            )
            sums.add_part(part, d_logits)
        sums.add_chunk(chunk.rows, grad_scratch[: chunk.rows.stop - chunk.rows.start])
    loss, mass = joined(results)
    return *reduce(loss, mass, reduction, kernels.mean), *sums.results()


def _fused_fake(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, indices: Tensor, weights: Tensor, uniform: Tensor | None,
    similarity: list[Tensor], temperature: list[float],
    label_smoothing: float, entropy: float, z_loss: float, logit_scale: float, softcap: float,
    reduction: str, chunk_bytes: int, wanted: list[bool], impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    del bias, indices, weights, uniform, similarity, temperature
    del label_smoothing, entropy, z_loss, logit_scale, softcap, chunk_bytes, impl
    scale = inputs.new_empty(() if reduction == "mean" else 0, dtype=accumulator_dtype(inputs.dtype))
    return (
        scale.new_empty(()),
        scale,
        *_fake_gradients(inputs, weight, wanted, gradient_dtype(inputs.device.type, inputs.dtype)),
    )


def _fake_gradients(
    inputs: Tensor, weight: Tensor, wanted: list[bool], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (inputs.shape, weight.shape, weight.shape[:1])
    grads = [inputs.new_empty(shape if use else (0,), dtype=dtype) for shape, use in zip(shapes, wanted, strict=True)]
    return grads[0], grads[1], grads[2]


def _forward(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, indices: Tensor, weights: Tensor, uniform: Tensor | None,
    similarity: list[Tensor], temperature: list[float],
    label_smoothing: float, entropy: float, z_loss: float, logit_scale: float, softcap: float,
    reduction: str, chunk_bytes: int, impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Only the loss, with what a recomputing backward needs."""
    options = RowOptions(label_smoothing, entropy, z_loss, logit_scale, softcap)
    layer = LinearLayer(inputs, weight, bias)
    target = _prepare(layer, indices, weights, uniform, similarity, temperature)
    layout = layer.layout(_budget(layer, target, chunk_bytes), with_gradient=False)
    scratch = layer.scratch(layout.logits_rows, layer.num_classes, layer.accumulator)
    kernels = implementation(impl)
    loss, lse, row_entropy, mass = joined(
        [
            kernels.sparse_cross_entropy_forward(
                layer.logits(part, scratch), *target.rows(part), options, target.dense(part)
            )
            for part in layout.parts(layer.num_rows)
        ]
    )
    loss, scale = reduce(loss, mass, reduction, kernels.mean)
    return loss, lse, scale, row_entropy


def _forward_fake(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, indices: Tensor, weights: Tensor, uniform: Tensor | None,
    similarity: list[Tensor], temperature: list[float],
    label_smoothing: float, entropy: float, z_loss: float, logit_scale: float, softcap: float,
    reduction: str, chunk_bytes: int, impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    del weight, bias, indices, weights, uniform, similarity, temperature
    del label_smoothing, z_loss, logit_scale, softcap, chunk_bytes, impl
    rows, dtype = inputs.shape[0], accumulator_dtype(inputs.dtype)
    loss = inputs.new_empty(rows if reduction == "none" else (), dtype=dtype)
    scale = inputs.new_empty(() if reduction == "mean" else 0, dtype=dtype)
    lse = inputs.new_empty(rows, dtype=torch.float64)
    return loss, lse, scale, inputs.new_empty(rows if entropy else 0, dtype=dtype)


def _backward(
    grad: Tensor, scale: Tensor | None, inputs: Tensor, weight: Tensor, bias: Tensor | None,
    lse: Tensor, row_entropy: Tensor, indices: Tensor, weights: Tensor, uniform: Tensor | None,
    similarity: list[Tensor], temperature: list[float], mass: Tensor | None,
    label_smoothing: float, entropy: float, z_loss: float, logit_scale: float, softcap: float,
    chunk_bytes: int, wanted: list[bool], impl: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute the logits again and from them the gradients, for an incoming gradient of every row or of all."""
    options = RowOptions(label_smoothing, entropy, z_loss, logit_scale, softcap)
    layer = LinearLayer(inputs, weight, bias)
    target = _prepare(layer, indices, weights, uniform, similarity, temperature, checked=True)
    upstream = grad.to(layer.accumulator).contiguous()
    if scale is not None:
        upstream = upstream * scale
    saved = _Saved(upstream.expand(layer.num_rows), lse, row_entropy if entropy else None)
    if target.similarity is not None:
        grads = _backward_by_rows(layer, target, saved, options, chunk_bytes, wanted, impl)
    else:
        mass = target.mass(layer.num_classes) if mass is None else mass.to(layer.accumulator)
        grads = _backward_by_classes(layer, target, saved, mass.contiguous(), options, chunk_bytes, wanted, impl)
    return grads[0].to(inputs.dtype), grads[1].to(inputs.dtype), grads[2].to(inputs.dtype)


class _Saved(NamedTuple):
    """What the backward knows of every row, ``(N,)`` each."""

    grad: Tensor
    lse: Tensor
    entropy: Tensor | None

    def rows(self, part: slice, logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the first four arguments of the kernel."""
        entropy = self.grad.new_empty(0) if self.entropy is None else self.entropy[part]
        return self.grad[part].contiguous(), logits, self.lse[part], entropy


def _backward_by_classes(
    layer: LinearLayer, target: LinearTarget, saved: _Saved, mass: Tensor, options: RowOptions,
    chunk_bytes: int, wanted: list[bool], impl: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Slice the vocabulary: each slice of the weight's gradient is written once, in its own dtype.

    A slice knows its own entries alone, so the kernel is given the mass of the whole target, and label smoothing is
    folded into weights and uniform mass first.
    """
    eps, num_classes = options.label_smoothing, layer.num_classes
    uniform = eps * mass if target.uniform is None else (1 - eps) * target.uniform + eps * mass
    weights = target.weights * (1 - eps) if eps else target.weights
    has_uniform = target.uniform is not None or eps != 0
    peak = saved.grad.abs().amax() if layer.compute == torch.float16 and layer.num_rows else None
    if peak is not None:  # in half precision the gradients would underflow
        saved = saved._replace(grad=saved.grad / peak.clamp(min=torch.finfo(peak.dtype).tiny))
    size = _slice_size(layer, chunk_bytes)
    scratch = layer.scratch(layer.num_rows, size, layer.accumulator)
    is_narrow = layer.compute != layer.accumulator
    grad_scratch = layer.scratch(layer.num_rows, size, layer.compute).view(-1) if is_narrow else None
    sums = ClassSums(layer, wanted, peak)
    for start in range(0, num_classes, size):
        part = slice(start, min(start + size, num_classes))
        logits = layer.logits(slice(None), scratch, part)
        d_logits = logits if grad_scratch is None else grad_scratch[: logits.numel()].view_as(logits)
        share = (part.stop - part.start) / num_classes
        implementation(impl).sparse_cross_entropy_backward(
            *saved.rows(slice(None), logits), target.indices - start, weights,
            uniform * share if has_uniform else None, options._replace(label_smoothing=0.0), d_logits, mass,
        )  # fmt: skip
        sums.add(part, d_logits)
    return sums.results()


def _slice_size(layer: LinearLayer, chunk_bytes: int) -> int:
    narrow = layer.compute.itemsize if layer.compute != layer.accumulator else 0
    size = chunk_bytes // (max(1, layer.num_rows) * (layer.accumulator.itemsize + narrow))
    return min(layer.num_classes, max(128, size // 128 * 128))


def _backward_by_rows(
    layer: LinearLayer, target: LinearTarget, saved: _Saved, options: RowOptions,
    chunk_bytes: int, wanted: list[bool], impl: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Cut the batch into chunks of rows, since dense rows are computed whole."""
    layout = layer.layout(_budget(layer, target, chunk_bytes), with_gradient=False)
    sums = GradientSums(layer, wanted, -(-layer.num_rows // layout.grad_rows))
    scratch = layer.scratch(layout.logits_rows, layer.num_classes, layer.accumulator)
    for part in layout.parts(layer.num_rows):
        logits = layer.logits(part, scratch)
        implementation(impl).sparse_cross_entropy_backward(
            *saved.rows(part, logits), *target.rows(part), options, logits, None, target.dense(part)
        )
        d_logits = logits.to(layer.compute)
        sums.add_part(part, d_logits)
        sums.add_chunk(part, d_logits)
    return sums.results()


def _backward_fake(
    grad: Tensor, scale: Tensor | None, inputs: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    del grad, scale, bias
    return _fake_gradients(inputs, weight, rest[-2], inputs.dtype)


def _select_forward(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, indices: Tensor, chunk_bytes: int, impl: str
) -> tuple[Tensor, Tensor]:
    layer = LinearLayer(inputs, weight, bias)
    slots = as_int32(indices, layer.num_classes)
    layout = layer.layout(chunk_bytes, with_gradient=False)
    scratch = layer.scratch(layout.logits_rows, layer.num_classes, layer.accumulator)
    select = implementation(impl).logsumexp_and_select_forward
    parts = layout.parts(layer.num_rows)
    lse, selected = joined([select(layer.logits(part, scratch), slots[part]) for part in parts])
    return lse, selected


def _select_forward_fake(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, indices: Tensor, chunk_bytes: int, impl: str
) -> tuple[Tensor, Tensor]:
    del weight, bias, chunk_bytes, impl
    dtype = accumulator_dtype(inputs.dtype)
    return inputs.new_empty(inputs.shape[0], dtype=torch.float64), inputs.new_empty(indices.shape, dtype=dtype)


_LINEAR_SCHEMA = "Tensor inputs, Tensor weight, Tensor? bias"
fused_op = define(
    f"linear_sparse_cross_entropy_with_gradients({_LINEAR_SCHEMA}, {TARGET_SCHEMA}, {OPTIONS_SCHEMA}, str reduction,"
    " int chunk_bytes, bool[] wanted, str impl) -> (Tensor loss, Tensor scale, Tensor, Tensor, Tensor)",
    _fused,
    _fused_fake,
)
forward_op = define(
    f"linear_sparse_cross_entropy({_LINEAR_SCHEMA}, {TARGET_SCHEMA}, {OPTIONS_SCHEMA}, str reduction,"
    " int chunk_bytes, str impl) -> (Tensor loss, Tensor lse, Tensor scale, Tensor row_entropy)",
    _forward,
    _forward_fake,
)
backward_op = define(
    f"linear_sparse_cross_entropy_backward(Tensor grad, Tensor? scale, {_LINEAR_SCHEMA}, Tensor lse,"
    f" Tensor row_entropy, {TARGET_SCHEMA}, Tensor? mass, {OPTIONS_SCHEMA}, int chunk_bytes, bool[] wanted, str impl)"
    " -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
select_op = define(
    f"linear_logsumexp_and_select({_LINEAR_SCHEMA}, Tensor indices, int chunk_bytes, str impl)"
    " -> (Tensor lse, Tensor selected)",
    _select_forward,
    _select_forward_fake,
)
