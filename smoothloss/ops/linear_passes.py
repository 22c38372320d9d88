"""What the linear op does, whoever calls it: the loss, its gradients in one go, or logits computed a second time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from smoothloss import backends
from smoothloss.backends.common import Forward, RowOptions, RowTarget, replaced
from smoothloss.ops.compensated import CompensatedSums
from smoothloss.ops.linear_layer import ClassSums, GradientSums, Layout, LinearLayer
from smoothloss.ops.target import FlatTarget


def _budget(layer: LinearLayer, target: FlatTarget, chunk_bytes: int) -> int:
    """Return the part of the budget that is left for logits where dense rows want their share."""
    if not target.row_bytes:
        return chunk_bytes
    logits_bytes = layer.num_classes * layer.accumulator.itemsize
    return chunk_bytes * logits_bytes // (logits_bytes + target.row_bytes)


def _is_whole(layout: Layout, layer: LinearLayer) -> bool:
    return layout.logits_rows >= layer.num_rows


def fused(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, target: FlatTarget, options: RowOptions, reduction: str,
    chunk_bytes: int, wanted: list[bool], impl: str, tail: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the reduced loss, the factor of the gradients, and these, unscaled, in one go.

    A tail is the tolerance of `CompensatedSums`.
    """
    layer = LinearLayer(inputs, weight, bias)
    layout, kernels = layer.layout(_budget(layer, target, chunk_bytes), with_gradient=True), backends.kernels(impl)
    chunks = -(-layer.num_rows // layout.grad_rows)
    if tail is None:
        sums = GradientSums(layer, wanted, chunks)
    else:
        sums = CompensatedSums(layer, wanted, chunks, target, options, tail)
    scratch = layer.scratch(layout.logits_rows, layer.num_classes, layer.accumulator)
    narrow = layer.compute != layer.accumulator
    grad_scratch = layer.scratch(layout.grad_rows, layer.num_classes, layer.compute) if narrow else scratch
    if _is_whole(layout, layer):
        logits = layer.logits(None, scratch)
        d_logits = grad_scratch if grad_scratch.shape == logits.shape else grad_scratch[: layer.num_rows]
        result, some_ignored = kernels.forward_backward(
            logits, target.rows(layer.accumulator), options, d_logits, reduction
        )
        if some_ignored:
            layer.ignore(result.mass)
        sums.add_part(None, d_logits)
        sums.add_chunk(None, d_logits)
        assert result.scale is not None
        return result.loss, result.scale, *sums.results()
    losses: list[Tensor] = []
    masses: list[Tensor] = []
    for chunk in layout.chunks(layer.num_rows):
        for part, place in chunk.parts:
            rows = target.rows(layer.accumulator, part)
            d_logits = grad_scratch[place]
            result, some_ignored = kernels.forward_backward(
                layer.logits(part, scratch), rows, options, d_logits, "none"
            )
            if some_ignored:
                layer.ignore(result.mass, part)
            assert result.mass is not None
            losses.append(result.loss)
            masses.append(result.mass)
            sums.add_part(part, d_logits)
        sums.add_chunk(chunk.rows, grad_scratch[: chunk.rows.stop - chunk.rows.start])
    return *kernels.reduce(torch.cat(losses), torch.cat(masses), reduction), *sums.results()


def losses(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, target: FlatTarget, options: RowOptions, reduction: str,
    chunk_bytes: int, impl: str,
) -> Forward:  # fmt: skip
    """Return only the loss, with what a recomputing backward needs."""
    layer, kernels = LinearLayer(inputs, weight, bias), backends.kernels(impl)
    layout = layer.layout(_budget(layer, target, chunk_bytes), with_gradient=False)
    scratch = layer.scratch(layout.logits_rows, layer.num_classes, layer.accumulator)
    if _is_whole(layout, layer):
        return kernels.forward(layer.logits(None, scratch), target.rows(layer.accumulator), options, reduction)
    results = [
        kernels.forward(layer.logits(part, scratch), target.rows(layer.accumulator, part), options, "none")
        for part in layout.parts(layer.num_rows)
    ]
    losses, statistics, masses, _ = zip(*results, strict=True)
    loss, mass = torch.cat(losses), torch.cat(masses)
    if reduction == "none":
        return Forward(loss, torch.cat(statistics), mass, None)
    loss, scale = kernels.reduce(loss, mass, reduction)
    return Forward(loss, torch.cat(statistics), None, scale)


# ---- the backward that computes the logits again


def recomputed(
    grad: Tensor, scale: Tensor | None, inputs: Tensor, weight: Tensor, bias: Tensor | None, statistics: Tensor,
    target: FlatTarget, mass: Tensor | None, options: RowOptions, chunk_bytes: int, wanted: list[bool], impl: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients, for an incoming gradient of every row or of all."""
    layer = LinearLayer(inputs, weight, bias)
    upstream = grad.to(layer.accumulator).contiguous()
    if scale is not None:
        upstream = upstream * scale
    total = target.mass(layer.num_classes, layer.accumulator)
    upstream = upstream.expand(layer.num_rows)
    if mass is None:
        layer.ignore(total)
        if grad.numel() > 1:  # what comes down to an ignored row may be anything, too
            upstream = upstream.masked_fill(total == 0, 0.0)
    saved = Saved(upstream, statistics)
    if target.source is not None:
        grads = _backward_by_rows(layer, target, saved, options, chunk_bytes, wanted, impl)
    else:
        total = total if mass is None else mass.to(layer.accumulator)
        grads = backward_by_classes(layer, target, saved, total.contiguous(), options, chunk_bytes, wanted, impl)
    return grads[0].to(inputs.dtype), grads[1].to(inputs.dtype), grads[2].to(inputs.dtype)


class Saved(NamedTuple):
    """What the backward knows of every row: incoming gradient ``(N,)`` and statistics ``(N, 3)``."""

    grad: Tensor
    statistics: Tensor


def backward_by_classes(
    layer: LinearLayer, target: FlatTarget, saved: Saved, mass: Tensor, options: RowOptions,
    chunk_bytes: int, wanted: list[bool], impl: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Slice the vocabulary: each slice of the weight's gradient is written once, in its own dtype.

    A slice knows its own entries alone, so the kernel is given the mass of the whole target, and label smoothing is
    folded into weights and uniform mass first.
    """
    eps, num_classes = options.label_smoothing, layer.num_classes
    rows = as_entries(target, layer.accumulator)
    assert rows.weights is not None
    uniform = eps * mass if rows.uniform is None else (1 - eps) * rows.uniform + eps * mass
    weights = rows.weights * (1 - eps) if eps else rows.weights
    has_uniform = rows.uniform is not None or eps != 0
    peak = saved.grad.abs().amax() if layer.compute == torch.float16 and layer.num_rows else None
    grad = saved.grad
    if peak is not None:  # in half precision the gradients would underflow
        grad = grad / peak.clamp(min=torch.finfo(peak.dtype).tiny)
    grad = grad.contiguous()
    size = _slice_size(layer, chunk_bytes)
    scratch = layer.scratch(layer.num_rows, size, layer.accumulator)
    is_narrow = layer.compute != layer.accumulator
    grad_scratch = layer.scratch(layer.num_rows, size, layer.compute).view(-1) if is_narrow else None
    sums = ClassSums(layer, wanted, peak)
    for start in range(0, num_classes, size):
        part = slice(start, min(start + size, num_classes))
        logits = layer.logits(None, scratch, part)
        d_logits = logits if grad_scratch is None else grad_scratch[: logits.numel()].view_as(logits)
        prior = None if rows.prior is None else rows.prior[part]
        share = 1.0 if prior is not None else (part.stop - part.start) / num_classes
        spread = uniform * share if has_uniform else None
        entries = RowTarget(_in_slice(rows.indices, part), weights, spread, prior=prior)
        unsmoothed = replaced(RowOptions, options, label_smoothing=0.0)
        backends.kernels(impl).backward(grad, None, logits, saved.statistics, entries, unsmoothed, d_logits, mass)
        sums.add(part, d_logits)
    return sums.results()


def as_entries(target: FlatTarget, dtype: torch.dtype) -> RowTarget:
    """Return the target as entries with weights, int32 indices, -1 in empty slots; class numbers too."""
    rows = target.rows(dtype)
    indices = rows.indices if rows.indices.dim() == 2 else rows.indices.unsqueeze(-1)
    if rows.ignore_index is not None:
        indices = indices.masked_fill(indices == rows.ignore_index, -1)
    if indices.dtype == torch.int64:
        indices = indices.clamp(min=-1, max=torch.iinfo(torch.int32).max).int()
    weights = torch.ones(indices.shape, dtype=dtype, device=indices.device) if rows.weights is None else rows.weights
    return RowTarget(indices, weights, rows.uniform, prior=rows.prior)


def _in_slice(indices: Tensor, classes: slice) -> Tensor:
    """Return the indices counted from the start of a slice of the classes, -1 for those beyond."""
    return (indices - classes.start).masked_fill_(indices >= classes.stop, -1)


def _slice_size(layer: LinearLayer, chunk_bytes: int) -> int:
    narrow = layer.compute.itemsize if layer.compute != layer.accumulator else 0
    size = chunk_bytes // (max(1, layer.num_rows) * (layer.accumulator.itemsize + narrow))
    return min(layer.num_classes, max(128, size // 128 * 128))


def _backward_by_rows(
    layer: LinearLayer, target: FlatTarget, saved: Saved, options: RowOptions,
    chunk_bytes: int, wanted: list[bool], impl: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Cut the batch into chunks of rows, since dense rows are computed whole."""
    layout = layer.layout(_budget(layer, target, chunk_bytes), with_gradient=False)
    sums = GradientSums(layer, wanted, -(-layer.num_rows // layout.grad_rows))
    scratch = layer.scratch(layout.logits_rows, layer.num_classes, layer.accumulator)
    for part in layout.parts(layer.num_rows):
        logits, rows = layer.logits(part, scratch), target.rows(layer.accumulator, part)
        own = saved.grad[part].contiguous(), None, logits, saved.statistics[part]
        backends.kernels(impl).backward(*own, rows, options, logits)
        d_logits = logits.to(layer.compute)
        sums.add_part(part, d_logits)
        sums.add_chunk(part, d_logits)
    return sums.results()
