"""Token statistics where the classes are split over processes, on the way of `vocabulary_parallel`.

A kernel's backward on a slice takes what was merged of the whole row. The slots that name classes of other slices reach
it as a part of logsumexp's gradient, since both weigh p alike, and their classes as a part of the rest. Where the
gradient of `log_rest` itself is asked for, which those classes have no part in, plain torch code takes the kernel's
place, chunk by chunk.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from smoothloss import backends
from smoothloss.backends.common import (
    RowOptions,
    StatisticsGradients,
    TokenStatistics,
    accumulator_dtype,
    merge_equal,
)
from smoothloss.backends.reference import transform_logits
from smoothloss.ops.cross_entropy import new_gradient
from smoothloss.ops.linear_layer import GradientSums, LinearLayer
from smoothloss.ops.linear_token_statistics import How, live_rows, wide_gradients
from smoothloss.ops.token_statistics import accumulated
from smoothloss.ops.token_statistics import backward as write_gradient
from smoothloss.ops.transforms import apply, differentiable_once
from smoothloss.ops.vocabulary_split import Split, check_eager, gathered, largest_share, whole_of

# Of a slice: the largest logit and ``sum exp(z - largest)``, the entropy, the first two of the rest, log_rest, the
# largest input and where that is, the first two of the classes that slots name; then a log_prob for each slot.
_COLUMNS = 10


class _Call(NamedTuple):
    """Everything about a call but its differentiable tensors; `indices` ``(N, S)`` are those of all classes."""

    indices: Tensor
    options: RowOptions
    impl: str
    split: Split
    chunk_bytes: int

    def own(self) -> Tensor:
        """Return the indices counted from the start of this process's classes, -1 for the others."""
        return self.split.own(self.indices)


def statistics(
    rows: Tensor, linear: Any, indices: Tensor, options: RowOptions, impl: str, split: Split
) -> TokenStatistics:
    """Return the statistics of logits ``(N, V_r)``, or hidden states with `linear`, the same on every process."""
    check_eager(rows)
    if linear is None:
        return TokenStatistics(*apply(_Statistics, rows, _Call(indices, options, impl, split, 0)))
    call = _Call(indices, options, impl, split, linear.budget())
    return TokenStatistics(*apply(_LinearStatistics, rows, linear.weight, linear.bias, call))


def _summary(logits: Tensor, indices: Tensor, call: _Call) -> Tensor:
    """Return the columns of a slice's logits, in float64."""
    rows, classes = logits.shape
    summary = torch.zeros(rows, _COLUMNS + indices.shape[1], dtype=torch.float64, device=logits.device)
    if classes == 0:
        return _of_nothing(summary)
    if logits.stride(-1) != 1:
        logits = logits.contiguous()
    found, saved = backends.get(call.impl).token_statistics(logits, indices.contiguous(), call.options)
    if saved is None:
        z = transform_logits(logits, call.options).double()
        largest = z.amax(-1)
        total = (z - largest.unsqueeze(-1)).exp().sum(-1)
        of_rest = total * found.log_rest.double().exp()
        of_row = torch.stack((largest, total, found.entropy, largest, of_rest), -1)
    else:
        of_row = torch.stack((*whole_of(saved), *saved.double().unbind(-1)[2:]), -1)
        summary[:, 8:10] = saved[:, :2]
    summary[:, :5] = of_row
    summary[:, 5] = found.log_rest
    summary[:, 6] = logits.gather(-1, found.argmax.unsqueeze(-1)).squeeze(-1)
    summary[:, 7] = found.argmax + call.split.start
    summary[:, _COLUMNS:] = found.log_prob
    ruled_out = (summary[:, 0] == -torch.inf).unsqueeze(-1)  # all classes of the slice: it has no softmax of its own
    nothing_there = _of_nothing(summary)
    nothing_there[:, 7] = call.split.start
    nothing_there[:, _COLUMNS:] = torch.where(indices >= 0, -torch.inf, 0.0)
    return torch.where(ruled_out, nothing_there, summary)


def _of_nothing(like: Tensor) -> Tensor:
    """Return the columns of no probability at all."""
    summary = torch.zeros_like(like)
    summary[:, [0, 3, 5, 6, 8]] = -torch.inf
    return summary


def _merged(summary: Tensor, call: _Call, dtype: torch.dtype) -> tuple[TokenStatistics, Tensor]:
    """Return the statistics of whole rows, and what a kernel's backward is to know of them."""
    split = call.split
    parts = gathered(summary, call.indices, None, split)
    largest, total, entropy, rest_largest, rest_total, rests, inputs, places = parts[..., :8].unbind(-1)
    centre, sum_exp, share, log_share = largest_share(largest, total)
    rest_centre, rest_sum, _, _ = largest_share(rest_largest, rest_total)
    log_rest = _log_mean_exp(rests.where(total != 0, -torch.inf), share, log_share)
    row_entropy = (share * (entropy - log_share)).sum(0)
    owner = split.owner(call.indices).unsqueeze(0)
    log_prob = (parts[..., _COLUMNS:] + log_share.unsqueeze(-1)).gather(0, owner)[0]
    filled = (call.indices >= 0) & (call.indices < split.total)
    first = inputs.argmax(0, keepdim=True)
    found = TokenStatistics(
        log_prob.where(filled, 0.0).to(dtype),
        log_rest.to(dtype),
        row_entropy.to(dtype),
        (centre + sum_exp.log()).to(dtype),
        places.gather(0, first)[0].long(),
    )
    of_row = (centre, sum_exp, row_entropy, rest_centre, rest_sum, log_rest)
    saved = torch.stack((*of_row, *summary[:, 8:_COLUMNS].unbind(-1)), -1)
    return found, saved


def _log_mean_exp(values: Tensor, share: Tensor, log_share: Tensor) -> Tensor:
    """Return ``log sum_r share_r exp(values_r)`` for values of at most 0 and shares that add up to one."""
    near = torch.log1p((share * torch.expm1(values)).sum(0).clamp(min=-0.5))
    far = (values + log_share).logsumexp(0)
    return torch.where(far > -0.5, near, far)


def _of_slice(saved: Tensor, log_prob: Tensor, call: _Call, own: Tensor) -> Tensor:
    """Return what a kernel is to know of a row whose listed classes are this slice's alone: all others are its rest."""
    centre, sum_exp, entropy, rest_centre, rest_sum, _, listed, listed_sum = saved.unbind(-1)
    elsewhere = _elsewhere(call, own)
    first, _ = merge_equal(call.indices.masked_fill(~elsewhere, -1), torch.ones_like(log_prob))
    others = log_prob.double().where(first >= 0, -torch.inf)
    # A slot more, so that there is one.
    largest = torch.nn.functional.pad(others, (0, 1), value=-torch.inf).amax(-1)
    total = (others - largest.where(largest.isfinite(), 0.0).unsqueeze(-1)).exp().sum(-1)
    merged = largest_share(torch.stack((rest_centre, largest + centre + sum_exp.log())), torch.stack((rest_sum, total)))
    return torch.stack((listed, listed_sum, entropy, *merged[:2]), -1).to(log_prob.dtype)


def _elsewhere(call: _Call, own: Tensor) -> Tensor:
    """Return which slots name a class of another slice."""
    return (own < 0) & (call.indices >= 0) & (call.indices < call.split.total)


def _own_gradients(grads: StatisticsGradients, call: _Call, own: Tensor) -> StatisticsGradients:
    """Return what comes back for a slice: the slots of others as a part of logsumexp's gradient."""
    if grads.log_prob is None:
        return grads
    others = grads.log_prob.where(_elsewhere(call, own), 0.0).sum(-1)
    logsumexp = -others if grads.logsumexp is None else grads.logsumexp - others
    return StatisticsGradients(grads.log_prob.where(own >= 0, 0.0), grads.log_rest, grads.entropy, logsumexp)


def _gradient(grads: StatisticsGradients, logits: Tensor, own: Tensor, saved: Tensor, call: _Call) -> Tensor:
    """Return the gradient of a slice's logits as its definition says."""
    live = live_rows(grads, own, logits.shape[1]).unsqueeze(-1)
    centre, sum_exp, entropy, rest_centre, rest_sum, log_rest = saved[:, :6].unsqueeze(-1).unbind(1)
    with torch.enable_grad():
        leaf = logits.detach().where(live, 0.0).requires_grad_()
        z = transform_logits(leaf, call.options)
    # What all classes of a row share is computed in float64: the parts of its weight may nearly cancel.
    dtype = z.dtype
    distance = z.detach() - centre.to(dtype)
    p = distance.exp() / sum_exp.to(dtype)  # an exponential of the whole log_p would round it twice
    weight = torch.zeros_like(centre)
    filled = own >= 0
    place = own.where(filled, 0).long()
    d_z = torch.zeros_like(p)
    if grads.log_prob is not None:
        weight = weight - grads.log_prob.sum(-1, keepdim=True)
        d_z = d_z.scatter_add(1, place, grads.log_prob)
    if grads.logsumexp is not None:
        weight = weight + grads.logsumexp.unsqueeze(-1)
    if grads.log_rest is not None:
        has_rest = rest_sum != 0
        back = grads.log_rest.unsqueeze(-1).where(has_rest, 0.0)
        weight = weight - back
        marks = torch.zeros(p.shape[0], p.shape[1] + 1, dtype=torch.bool, device=p.device)
        listed = marks.scatter(1, place.where(filled, p.shape[1]), True)[:, :-1]
        # Of the rest, p relative to the rest's largest: p itself may be nothing.
        scale = (rest_centre - centre).exp() / sum_exp
        # p / rest - p, from the logarithm of the rest where that is next to nothing.
        surplus = torch.where(log_rest > -1, scale * torch.expm1(-log_rest.clamp(min=-1)), 1 / rest_sum - scale)
        of_rest = ((weight + back) * scale + back * surplus).where(has_rest, 0.0).to(dtype)
        relative = (z.detach() - rest_centre.to(dtype)).exp().where(has_rest & ~listed, 0.0)
        d_z = d_z + torch.where(listed, p * weight.to(dtype), relative * of_rest)
    else:
        d_z = d_z + p * weight.to(dtype)
    if grads.entropy is not None:
        d_z = d_z - grads.entropy.unsqueeze(-1) * torch.where(
            p == 0, 0.0, p * (distance + (entropy - sum_exp.log()).to(dtype))
        )
    (gradient,) = torch.autograd.grad(z, leaf, d_z.where(live, 0.0))
    return gradient


class _Statistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, call: _Call) -> TokenStatistics:
        found, saved = _merged(_summary(logits, call.own(), call), call, accumulator_dtype(logits.dtype))
        ctx.save_for_backward(logits, saved, found.log_prob)
        ctx.mark_non_differentiable(found.argmax)
        ctx.set_materialize_grads(False)
        ctx.call = call
        return found

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor | None) -> tuple[Tensor | None, ...]:
        grads, call = StatisticsGradients(*incoming[:4]), ctx.call
        given = [grad for grad in grads if grad is not None]
        if not given:
            return None, None
        logits, saved, log_prob = ctx.saved_tensors
        own = call.own()
        with torch.no_grad():
            of_slice = _own_gradients(grads, call, own)
            if logits.shape[1] == 0:
                out = torch.zeros_like(logits)
            elif _is_plain(grads, call):
                out = _gradient(of_slice, logits, own, saved, call)
            else:
                out = new_gradient(logits)
                known = _of_slice(saved, log_prob, call, own)
                write_gradient(of_slice, logits.detach(), own, known, call.options, out, call.impl)
        return *differentiable_once([out.to(logits.dtype)], logits, *given), None


class _LinearStatistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, call: _Call) -> TokenStatistics:
        layer, own = LinearLayer(inputs, weight, bias), call.own()
        if layer.num_classes:
            layout = layer.layout(call.chunk_bytes, with_gradient=False)
            scratch = layer.scratch(layout.logits_rows, layer.num_classes, layer.accumulator)
            parts = layout.parts(layer.num_rows)
            summary = torch.cat([_summary(layer.logits(part, scratch), own[part], call) for part in parts])
        else:
            summary = _summary(inputs.new_empty(inputs.shape[0], 0), own, call)
        found, saved = _merged(summary, call, layer.accumulator)
        ctx.save_for_backward(inputs, weight, bias, saved, found.log_prob)
        ctx.mark_non_differentiable(found.argmax)
        ctx.set_materialize_grads(False)
        ctx.call, ctx.wanted = call, list(ctx.needs_input_grad[:3])
        return found

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor | None) -> tuple[Tensor | None, ...]:
        grads, call = StatisticsGradients(*incoming[:4]), ctx.call
        given = [grad for grad in grads if grad is not None]
        if not given:
            return None, None, None, None
        inputs, weight, bias, *saved = ctx.saved_tensors
        with torch.no_grad():
            layer = LinearLayer(inputs.detach(), weight.detach(), bias)
            found = _linear_gradients(grads, layer, saved[0], saved[1], call, ctx.wanted)
            if ctx.wanted[0]:
                call.split.add_up(found[0])
        results = [
            value.to(like.dtype) if use else None
            for value, like, use in zip(found, (inputs, weight, weight), ctx.wanted, strict=True)
        ]
        return *differentiable_once(results, inputs, weight, bias, *given), None


def _is_plain(grads: StatisticsGradients, call: _Call) -> bool:
    """Return whether plain torch code computes the gradient."""
    return call.impl == "reference" or grads.log_rest is not None


def _linear_gradients(
    grads: StatisticsGradients, layer: LinearLayer, saved: Tensor, log_prob: Tensor, call: _Call, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return this slice's part of the gradient of the hidden states, and the gradients of weight and bias."""
    wide = layer.accumulator
    if layer.num_classes == 0:
        nothing = layer.weight.new_empty(0, dtype=wide)
        return torch.zeros_like(layer.inputs, dtype=wide), nothing.new_empty(layer.weight.shape), nothing
    own = call.own()
    of_slice = _own_gradients(accumulated(grads, wide), call, own)
    if not _is_plain(grads, call):
        known, how = _of_slice(saved, log_prob, call, own), How(call.options, call.chunk_bytes, wanted, call.impl)
        d_inputs, d_weight, d_bias = wide_gradients(of_slice, layer, own, known, how)
        return d_inputs.to(wide), d_weight, d_bias
    layer.ignore(live_rows(of_slice, own, layer.num_classes))
    layout = layer.layout(call.chunk_bytes, with_gradient=False)
    scratch = layer.scratch(layout.logits_rows, layer.num_classes, wide)
    sums = GradientSums(layer, wanted, 2)  # never one chunk: in the accumulator dtype throughout
    for part in layout.parts(layer.num_rows):
        of_part = StatisticsGradients(*(None if grad is None else grad[part] for grad in of_slice))
        d_logits = _gradient(of_part, layer.logits(part, scratch), own[part], saved[part], call).to(layer.compute)
        sums.add_part(part, d_logits)
        sums.add_chunk(part, d_logits)
    d_inputs, d_weight, d_bias = sums.results()
    return d_inputs.to(wide), d_weight, d_bias
