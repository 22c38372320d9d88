"""The primitive where the classes are split over processes, each of which holds a slice of them.

Every process makes one pass over its slice and tells the others some numbers of each row, which all of them merge in
the order of the ranks, so that all end with the same bits. In the backward a kernel that is given the statistics and
the mass of the whole row computes its slice of the gradient as ever; only the gradient of the hidden states is summed.

Collectives: in the forward the sizes of the slices, and `_COLUMNS` numbers of each row with one that stands for its
target, which must be the same on all; in the backward the gradient of the hidden states. Nothing grows with V.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from smoothloss import backends
from smoothloss.backends.common import (
    DenseRows,
    RowOptions,
    RowTarget,
    accumulator_dtype,
    replaced,
    without_autocast,
)
from smoothloss.backends.reference import reduce, transform_logits
from smoothloss.ops.linear_layer import LinearLayer
from smoothloss.ops.linear_passes import Saved, as_entries, backward_by_classes
from smoothloss.ops.target import FlatTarget
from smoothloss.ops.transforms import apply, differentiable_once
from smoothloss.ops.vocabulary_split import Split, check_eager, gathered, largest_share, whole_of

# Of a slice's logits: the largest, sum exp(z - largest), the entropy; of the target in it: the loss against the slice's
# own logsumexp, and the mass.
_COLUMNS = 5


class _Call(NamedTuple):
    """Everything about a call but its differentiable tensors.

    Attributes:
        target: entries and masses over all classes, label smoothing in it.
        mass: ``(N,)``, the whole target's.
        options: of a row, without label smoothing.
    """

    target: FlatTarget
    mass: Tensor
    options: RowOptions
    reduction: str
    impl: str
    split: Split
    chunk_bytes: int


def loss(
    rows: Tensor, linear: Any, target: FlatTarget, options: RowOptions, reduction: str, impl: str, split: Split
) -> Tensor:
    """Return the loss of this process's slice of logits ``(N, V_r)``, the same on every process.

    Args:
        rows: logits, or hidden states ``(N, D)`` with `linear`, the slice of the classifier (`Linear`).
        linear, target, options, reduction, impl: as everywhere; class numbers are those of all classes.
        split: how the classes are split.
    """
    if linear is None:
        return apply(_CrossEntropy, rows, _call(rows, target, options, reduction, impl, split, 0))
    call = _call(rows, target, options, reduction, impl, split, linear.budget())
    return apply(_LinearCrossEntropy, rows, linear.weight, linear.bias, call)


def _call(
    like: Tensor, target: FlatTarget, options: RowOptions, reduction: str, impl: str, split: Split, chunk_bytes: int
) -> _Call:
    check_eager(like)
    if target.source is not None:
        got = "class weights with smoothing" if isinstance(target.source, DenseRows) else "a table with an exact tail"
        raise ValueError(f"table, weight: got {got} together with group, expected a target of entries and uniform mass")
    dtype, eps = accumulator_dtype(like.dtype), options.label_smoothing
    mass = target.mass(split.total, dtype)
    rows = as_entries(target, dtype)
    assert rows.weights is not None
    kept = (mass != 0).unsqueeze(-1)
    weights = (rows.weights * (1 - eps)).where(kept, 0.0)
    uniform = rows.uniform
    if eps or uniform is not None:
        uniform = eps * mass if uniform is None else ((1 - eps) * uniform + eps * mass).where(kept[:, 0], 0.0)
    flat = FlatTarget(rows.indices, weights, uniform, prior=rows.prior)
    return _Call(flat, mass, replaced(RowOptions, options, label_smoothing=0.0), reduction, impl, split, chunk_bytes)


def _own(call: _Call, part: slice | None = None) -> RowTarget:
    """Return what of the target lies in the classes of this process."""
    part, split = part or slice(None), call.split
    indices, weights, uniform, prior = call.target.indices[part], call.target.weights, call.target.uniform, None
    assert weights is not None
    if uniform is not None:
        share: Tensor | float = split.size / max(split.total, 1)
        if call.target.prior is not None:
            prior = call.target.prior[split.start : split.start + split.size]
            share = prior.sum()
            prior = prior / share.clamp(min=torch.finfo(prior.dtype).tiny)
        uniform = uniform[part] * share
    return RowTarget(split.own(indices).contiguous(), weights[part].contiguous(), uniform, prior=prior)


# ---- forward: a pass over the slice, and the merge


def _summary(logits: Tensor, target: RowTarget, call: _Call) -> Tensor:
    """Return the `_COLUMNS` of a slice's logits ``(N, V_r)``, in float64."""
    rows, classes = logits.shape
    summary = torch.zeros(rows, _COLUMNS, dtype=torch.float64, device=logits.device)
    if classes == 0:
        summary[:, 0] = -torch.inf
        return summary
    if logits.stride(-1) != 1:
        logits = logits.contiguous()
    backend, options = backends.get(call.impl), call.options
    assert target.weights is not None
    statistics, saved = backend.token_statistics(logits, target.indices, options)
    if saved is None:
        z = transform_logits(logits, options).double()
        summary[:, 0] = z.amax(-1)
        summary[:, 1] = (z - summary[:, :1]).exp().sum(-1)
    else:
        summary[:, 0], summary[:, 1] = whole_of(saved)
    summary[:, 2] = statistics.entropy
    filled = target.indices >= 0
    weights = target.weights.where(filled, 0.0)
    nll = torch.where(weights == 0, 0.0, -weights * statistics.log_prob)
    summary[:, 3], summary[:, 4] = nll.sum(-1, dtype=torch.float64), weights.sum(-1, dtype=torch.float64)
    if target.uniform is not None:
        none = target.indices[:, :0].contiguous(), weights[:, :0].contiguous()
        nothing = RowTarget(*none, target.uniform, prior=target.prior)
        plain = RowOptions(logit_scale=options.logit_scale, softcap=options.softcap)
        summary[:, 3] += backend.forward(logits, nothing, plain, "none").loss
        summary[:, 4] += target.uniform if target.prior is None else target.uniform * target.prior.sum()
    ruled_out = summary[:, 0] == -torch.inf  # all classes of the slice: it has no softmax of its own
    infinite = torch.where(summary[:, 4] != 0, torch.inf, 0.0)
    nothing_there = torch.stack(
        (summary[:, 0], *torch.zeros_like(summary[:, :2]).unbind(-1), infinite, summary[:, 4]), -1
    )
    return torch.where(ruled_out.unsqueeze(-1), nothing_there, summary)


def _merged(summary: Tensor, call: _Call) -> tuple[Tensor, Tensor]:
    """Return the loss of each row, and the statistics of all its logits ``(N, 3)``, in float64."""
    assert call.target.weights is not None
    parts = gathered(summary, call.target.indices, call.target.weights, call.split)
    largest, total, entropy, nll, mass = parts.unbind(-1)  # (ranks, N)
    centre, sum_exp, share, log_share = largest_share(largest, total)
    # A target in a slice without any probability has an infinite loss of its own.
    loss = (nll - torch.where(mass == 0, 0.0, mass * log_share)).sum(0)
    entropy = (share * (entropy - log_share)).sum(0)
    options = call.options
    if options.z_loss:
        loss = loss + options.z_loss * (centre + sum_exp.log()).square()
    if options.entropy:
        loss = loss - options.entropy * entropy
    statistics = torch.stack((centre, sum_exp, entropy), -1)
    return loss.where(call.mass != 0, 0.0), statistics


def _reduced(losses: Tensor, call: _Call) -> tuple[Tensor, Tensor | None]:
    dtype = call.mass.dtype
    if call.reduction == "none":
        return losses.to(dtype), None
    loss, scale = reduce(losses, call.mass, call.reduction)
    return loss.to(dtype), scale.to(dtype)


# ---- backward: the kernels', with the statistics of the whole


def _write_gradient(
    grad: Tensor, scale: Tensor | None, logits: Tensor, statistics: Tensor, target: RowTarget, call: _Call, out: Tensor
) -> None:
    """Write the gradient of a slice's logits to `out`."""
    if logits.shape[1] == 0:
        return
    if call.impl != "reference":
        kernels = backends.kernels(call.impl)
        known = statistics.to(call.mass.dtype)
        kernels.backward(grad, scale, logits, known, target, call.options, out, call.mass)
        return
    factor = grad if scale is None else grad * scale
    out.copy_(_gradient(logits, statistics, target, call) * factor.reshape(-1, 1))


def _gradient(logits: Tensor, statistics: Tensor, target: RowTarget, call: _Call) -> Tensor:
    """Return the gradient of each row's loss as its definition says."""
    options, valid = call.options, (call.mass != 0).unsqueeze(-1)
    centre, sum_exp, entropy = statistics.unsqueeze(-1).unbind(1)
    lse, log_sum = centre + sum_exp.log(), sum_exp.log()
    with torch.enable_grad():
        leaf = logits.detach().where(valid, 0.0).requires_grad_()
        z = transform_logits(leaf, options)
    dtype = z.dtype
    distance = (z.detach() - centre.to(dtype)).where(valid, -torch.inf)
    p = distance.exp() / sum_exp.to(dtype)  # an exponential of the whole log_p would round it twice
    d_z = (call.mass.unsqueeze(-1) + 2 * options.z_loss * lse).where(valid, 0.0).to(dtype) * p
    if options.entropy:
        d_z = d_z + options.entropy * torch.where(p == 0, 0.0, p * (distance + (entropy - log_sum).to(dtype)))
    assert target.weights is not None
    filled = target.indices >= 0
    d_z = d_z.scatter_add(1, target.indices.where(filled, 0).long(), -target.weights.where(filled, 0.0))
    if target.uniform is not None:
        d_z = d_z - target.uniform.unsqueeze(-1) * (1 / logits.shape[1] if target.prior is None else target.prior)
    (gradient,) = torch.autograd.grad(z, leaf, d_z)
    return gradient.to(d_z.dtype)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, call: _Call) -> Tensor:
        losses, statistics = _merged(_summary(logits, _own(call), call), call)
        loss, scale = _reduced(losses, call)
        ctx.save_for_backward(logits, statistics, scale)
        ctx.call = call
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, statistics, scale = ctx.saved_tensors
        with torch.no_grad():
            values = logits.detach()
            values = values if values.stride(-1) == 1 else values.contiguous()
            out = torch.empty_like(values, memory_format=torch.contiguous_format)
            incoming = grad.detach().to(ctx.call.mass.dtype).contiguous()
            _write_gradient(incoming, scale, values, statistics, _own(ctx.call), ctx.call, out)
        return *differentiable_once([out], logits, grad), None


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, call: _Call) -> Tensor:
        layer = LinearLayer(inputs, weight, bias)
        if layer.num_classes:
            layout = layer.layout(call.chunk_bytes, with_gradient=False)
            scratch = layer.scratch(layout.logits_rows, layer.num_classes, layer.accumulator)
            with without_autocast(inputs.device.type):
                parts = layout.parts(layer.num_rows)
                summary = torch.cat([_summary(layer.logits(part, scratch), _own(call, part), call) for part in parts])
        else:
            summary = _summary(inputs.new_empty(inputs.shape[0], 0), _own(call), call)
        losses, statistics = _merged(summary, call)
        loss, scale = _reduced(losses, call)
        ctx.save_for_backward(inputs, weight, bias, statistics, scale)
        ctx.call, ctx.wanted = call, list(ctx.needs_input_grad[:3])
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, bias, statistics, scale = ctx.saved_tensors
        call, wanted = ctx.call, ctx.wanted
        with torch.no_grad():
            # What an ignored row holds, and what comes down to it, may be anything.
            ignored = call.mass == 0
            layer = LinearLayer(inputs.detach().masked_fill(ignored.unsqueeze(-1), 0.0), weight.detach(), bias)
            upstream = grad.detach().to(layer.accumulator)
            upstream = upstream if scale is None else upstream * scale
            upstream = upstream.expand(layer.num_rows).masked_fill(ignored, 0.0).contiguous()
            d_inputs, d_weight, d_bias = _linear_gradients(layer, upstream, statistics, call, wanted)
            if wanted[0]:
                call.split.add_up(d_inputs)
            found = (d_inputs.to(inputs.dtype), d_weight.to(weight.dtype), d_bias.to(weight.dtype))
        grads: list[Tensor | None] = [value if use else None for value, use in zip(found, wanted, strict=True)]
        return *differentiable_once(grads, inputs, weight, bias, grad), None


def _linear_gradients(
    layer: LinearLayer, upstream: Tensor, statistics: Tensor, call: _Call, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return this slice's part of the gradient of the hidden states, and the gradients of weight and bias."""
    if layer.num_classes == 0:
        nothing = layer.weight.new_empty(0, dtype=layer.accumulator)
        return torch.zeros_like(layer.inputs, dtype=layer.accumulator), nothing.new_empty(layer.weight.shape), nothing
    target = _own(call)
    if call.impl == "reference":
        logits = layer.logits(None, layer.scratch(layer.num_rows, layer.num_classes, layer.accumulator))
        d_logits = _gradient(logits, statistics, target, call) * upstream.unsqueeze(-1)
        wide = layer.weight.to(layer.accumulator)
        return d_logits @ wide, d_logits.t() @ layer.inputs.to(layer.accumulator), d_logits.sum(0)
    flat = FlatTarget(target.indices, target.weights, target.uniform, prior=target.prior)
    saved = Saved(upstream, statistics.to(layer.accumulator))
    return backward_by_classes(layer, flat, saved, call.mass, call.options, call.chunk_bytes, wanted, call.impl)
