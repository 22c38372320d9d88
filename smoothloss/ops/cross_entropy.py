"""The primitive on logits: which implementation runs, a node for eager code, torch operators for everything else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from smoothloss import backends
from smoothloss.backends.common import Forward, RowOptions, accumulator_dtype, replaced, without_autocast
from smoothloss.ops.checks import checked_op
from smoothloss.ops.register import OPTIONS_SCHEMA, TARGET_SCHEMA, define, no_gradients
from smoothloss.ops.target import FlatTarget
from smoothloss.ops.transforms import apply, differentiable_once, is_batched, is_eager

# One piece of dense rows; on CUDA as much as the linear op takes.
SOURCE_BYTES = {"cpu": 256 << 20, "cuda": 3 << 29}


def cross_entropy(
    logits: Tensor, target: FlatTarget, options: RowOptions, reduction: str, inplace: bool, impl: str
) -> Tensor:
    """Return the loss of logits ``(N, V)``, of each row or reduced, from the implementation `impl`."""
    if impl == "reference":
        return reference_loss(logits, target, options, reduction)
    if not is_eager(logits, target.indices, target.weights):
        loss: Tensor = forward_op(logits, *target.pack(), [*options], reduction, impl)[0]
        return loss
    if not (torch.is_grad_enabled() and logits.requires_grad):
        return forward(logits, target, options, reduction, impl).loss
    return apply(_CrossEntropy, logits, (target, options, reduction, inplace and owns_its_memory(logits), impl))


def reference_loss(logits: Tensor, target: FlatTarget, options: RowOptions, reduction: str) -> Tensor:
    """Return the loss in plain torch code, which autograd and every transform see through."""
    if torch.compiler.is_compiling():  # nobody else could say that an index is out of range
        indices = checked_op(target.indices, logits.shape[-1], target.ignore_index)
        target = replaced(FlatTarget, target, indices=indices)
    with without_autocast(logits.device.type):
        rows = target.rows(accumulator_dtype(logits.dtype))
        return backends.get("reference").forward(logits, rows, options, reduction).loss


def owns_its_memory(logits: Tensor) -> bool:
    """Return whether a gradient may be written over logits: they are dense, and nothing else is in their storage."""
    return logits.is_contiguous() and logits.untyped_storage().nbytes() == logits.numel() * logits.itemsize


def parts(rows: int, target: FlatTarget, device_type: str) -> list[slice | None]:
    """Return None for the whole batch, or pieces of it whose dense rows fit the budget."""
    if target.source is None or not target.row_bytes:
        return [None]
    budget = SOURCE_BYTES.get(device_type, SOURCE_BYTES["cpu"])
    size = max(1, budget // target.row_bytes)
    return [slice(start, min(start + size, rows)) for start in range(0, max(rows, 1), size)]


def forward(logits: Tensor, target: FlatTarget, options: RowOptions, reduction: str, impl: str) -> Forward:
    """Return what an implementation's forward does, in parts where the target has dense rows to compute."""
    if logits.stride(-1) != 1:
        logits = logits.contiguous()
    kernels, dtype = backends.kernels(impl), accumulator_dtype(logits.dtype)
    pieces = parts(logits.shape[0], target, logits.device.type)
    if len(pieces) == 1:
        return kernels.forward(logits, target.rows(dtype), options, reduction)
    results = [kernels.forward(logits[part], target.rows(dtype, part), options, "none") for part in pieces]
    losses, statistics, masses, _ = zip(*results, strict=True)
    loss, mass = torch.cat(losses), torch.cat(masses)
    if reduction == "none":
        return Forward(loss, torch.cat(statistics), mass, None)
    loss, scale = kernels.reduce(loss, mass, reduction)
    return Forward(loss, torch.cat(statistics), None, scale)


def backward(
    grad: Tensor, scale: Tensor | None, logits: Tensor, statistics: Tensor, target: FlatTarget,
    options: RowOptions, out: Tensor, impl: str, mass: Tensor | None = None,
) -> None:  # fmt: skip
    """Write the gradient of the logits to `out`, in the same parts."""
    kernels, dtype = backends.kernels(impl), accumulator_dtype(logits.dtype)
    if logits.stride(-1) != 1:
        logits = logits.contiguous()
    grad = grad.to(dtype).contiguous()
    mass = None if mass is None else mass.to(dtype).contiguous()
    pieces = parts(logits.shape[0], target, logits.device.type)
    if len(pieces) == 1:
        kernels.backward(grad, scale, logits, statistics, target.rows(dtype), options, out, mass)
        return
    for part in pieces:
        own = grad if grad.numel() == 1 else grad[part]
        rows = target.rows(dtype, part)
        kernels.backward(own, scale, logits[part], statistics[part], rows, options, out[part], mass)


def new_gradient(logits: Tensor) -> Tensor:
    """Return room for the gradient of logits, dense whatever the layout of theirs."""
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


# Everything about a call but its tensors is one argument: each costs time of its own.
_Call = tuple[FlatTarget, RowOptions, str, bool, str]


class _CrossEntropy(torch.autograd.Function):
    """The node of eager code; the backward recomputes the probabilities from the saved statistics."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, call: _Call) -> Tensor:
        target, ctx.options, reduction, ctx.inplace, ctx.impl = call
        loss, statistics, _, scale = forward(logits, target, ctx.options, reduction, ctx.impl)
        indices, weights, uniform, prior, source, settings, ignore_index = target.pack()
        ctx.save_for_backward(logits, statistics, scale, indices, weights, uniform, prior, *source)
        ctx.settings, ctx.is_consumed = (settings, ignore_index), False
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.is_consumed:
            raise RuntimeError("backward a second time: the logits were overwritten by their gradient (inplace=True)")
        logits, statistics, scale, indices, weights, uniform, prior, *source = ctx.saved_tensors
        target = FlatTarget.unpack(indices, weights, uniform, prior, source, *ctx.settings)
        values, incoming, are_several = logits, grad, is_batched(grad)
        if torch.is_grad_enabled():  # what is done here is no part of the graph that is being built
            values, incoming = logits.detach(), grad.detach()
        d_logits = logits.detach() if ctx.inplace else new_gradient(logits)
        if are_several:  # each row's gradient is linear in what comes in, for which torch knows the rule
            incoming = scale.new_ones(()) if scale is not None else statistics.new_ones(())
        backward(incoming, scale, values, statistics, target, ctx.options, d_logits, ctx.impl)
        if are_several:
            return (d_logits * (grad if grad.dim() == 0 else grad.unsqueeze(-1))).to(logits.dtype), None
        if ctx.inplace:
            ctx.is_consumed = True
            # Whoever saved the logits for a backward of their own must hear of it.
            torch.autograd.graph.increment_version(logits)
        return *differentiable_once([d_logits], logits, grad), None


# ---- as torch operators


def _forward(
    logits: Tensor, indices: Tensor, weights: Tensor | None, uniform: Tensor | None, prior: Tensor | None,
    source: list[Tensor], settings: list[float], ignore_index: int | None, options: list[float],
    reduction: str, impl: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    target = FlatTarget.unpack(indices, weights, uniform, prior, source, settings, ignore_index)
    loss, statistics, _, scale = forward(logits, target, RowOptions(*options), reduction, impl)
    assert statistics is not None
    return loss, statistics, loss.new_empty(0) if scale is None else scale


def _forward_fake(logits: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    rows, dtype, is_rows = logits.shape[0], accumulator_dtype(logits.dtype), rest[-2] == "none"
    loss = logits.new_empty(rows if is_rows else (), dtype=dtype)
    return loss, logits.new_empty((rows, 3), dtype=dtype), logits.new_empty(0 if is_rows else (), dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, indices, weights, uniform, prior, source, settings, ignore_index, options, reduction, impl = inputs
    _, statistics, scale = output
    ctx.save_for_backward(
        logits, statistics, scale if reduction != "none" else None, indices, weights, uniform, prior, *source
    )
    ctx.settings, ctx.options, ctx.impl, ctx.sources = (settings, ignore_index), options, impl, len(source)
    ctx.set_materialize_grads(False)


def _backward_of_op(ctx: Any, grad: Tensor | None, *unused: Any) -> tuple[Any, ...]:
    del unused
    rest = no_gradients((ctx.sources, len(ctx.settings[0])), 3)
    if grad is None:
        return None, *rest
    logits, statistics, scale, indices, weights, uniform, prior, *source = ctx.saved_tensors
    target = (indices, weights, uniform, prior, source, *ctx.settings)
    return backward_op(grad, scale, logits, statistics, *target, None, ctx.options, ctx.impl), *rest


def _backward(
    grad: Tensor, scale: Tensor | None, logits: Tensor, statistics: Tensor,
    indices: Tensor, weights: Tensor | None, uniform: Tensor | None, prior: Tensor | None,
    source: list[Tensor], settings: list[float], ignore_index: int | None, mass: Tensor | None,
    options: list[float], impl: str,
) -> Tensor:  # fmt: skip
    target = FlatTarget.unpack(indices, weights, uniform, prior, source, settings, ignore_index)
    out = new_gradient(logits)
    backward(grad, scale, logits, statistics, target, RowOptions(*options), out, impl, mass)
    return out


def _backward_fake(grad: Tensor, scale: Tensor | None, logits: Tensor, *rest: Any) -> Tensor:
    del grad, scale, rest
    return logits.new_empty(logits.shape)


forward_op = define(
    f"cross_entropy(Tensor logits, {TARGET_SCHEMA}, {OPTIONS_SCHEMA}, str reduction, str impl)"
    " -> (Tensor loss, Tensor statistics, Tensor scale)",
    _forward,
    _forward_fake,
    backward=_backward_of_op,
    setup_context=_setup_context,
)
backward_op = define(
    "cross_entropy_backward(Tensor grad, Tensor? scale, Tensor logits, Tensor statistics,"
    f" {TARGET_SCHEMA}, Tensor? mass, {OPTIONS_SCHEMA}, str impl) -> Tensor",
    _backward,
    _backward_fake,
)
