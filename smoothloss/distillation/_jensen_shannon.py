"""Jensen-Shannon from a teacher whose rest is spread evenly: the node of eager code, torch operators for the rest.

With a the teacher's probabilities, r that of every class that it does not name, ``m = beta a + (1 - beta) p`` and
``h = log p - log m`` ::

    loss = beta sum a (log a - log m) + (1 - beta) K,   K = KL(p || m) = sum p h
    dloss / dz_v = (1 - beta) p_v (h_v - K)

So the forward needs each p twice, once for the normaliser, and the backward once more: passes over a row that is in the
cache, and nothing of the size of the logits but their gradient. On hidden states the logits are computed again in the
backward, four matrix products in all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from smoothloss import backends
from smoothloss.backends.common import (
    SAVED_JENSEN_SHANNON,
    RowOptions,
    RowTarget,
    accumulator_dtype,
    without_autocast,
)
from smoothloss.backends.reference import transform_logits
from smoothloss.distillation import _terms
from smoothloss.ops.cross_entropy import new_gradient
from smoothloss.ops.linear_cross_entropy import Linear, fake_gradients, wanted_gradients
from smoothloss.ops.linear_layer import GradientSums, LinearLayer
from smoothloss.ops.register import define
from smoothloss.ops.transforms import apply, differentiable_once, is_batched, is_eager


class Spread(NamedTuple):
    """A teacher over all classes: what it says of those that it names, and the same of all others.

    Attributes:
        indices: ``(N, S)``, each class of a row once; negative: an empty slot. A row of empty slots has no teacher.
        log_a: ``(N, S)``, their log-probabilities.
        log_share: ``(N,)``, that of every other class.
    """

    indices: Tensor
    log_a: Tensor
    log_share: Tensor

    def rows(self, dtype: torch.dtype, part: slice) -> RowTarget:
        """Return some rows as the kernels take them."""
        indices, log_a, log_share = (tensor[part].contiguous() for tensor in self)
        return RowTarget(indices, log_a.to(dtype), log_share.to(dtype))


class How(NamedTuple):
    """Everything about a call but its tensors.

    Attributes:
        beta: strictly between 0 and 1.
        row: logit_scale and softcap count.
        chunk_bytes: of the scratch for logits.
        wanted: gradients of rows, weight and bias.
        impl: not the reference.
    """

    beta: float
    row: RowOptions
    chunk_bytes: int
    wanted: list[bool]
    impl: str

    def pack(self) -> tuple[Any, ...]:
        """Return it as the operators take it."""
        return self.beta, self.row.logit_scale, self.row.softcap, self.chunk_bytes, self.wanted, self.impl

    @classmethod
    def unpack(
        cls, beta: float, logit_scale: float, softcap: float, chunk_bytes: int, wanted: list[bool], impl: str
    ) -> How:
        """Return what `pack` packed."""
        return cls(beta, RowOptions(logit_scale=logit_scale, softcap=softcap), chunk_bytes, wanted, impl)


def jensen_shannon(
    rows: Tensor, linear: Linear | None, teacher: Spread, beta: float, row: RowOptions, impl: str
) -> Tensor:
    """Return the divergence of each row of logits ``(N, V)``, or of hidden states ``(N, D)`` with `linear`."""
    weight, bias = (None, None) if linear is None else (linear.weight, linear.bias)
    wanted = wanted_gradients(rows, weight, bias)
    how = How(beta, row, 0 if linear is None else linear.budget(), wanted, impl)
    if not is_eager(rows, weight, bias, teacher.indices):
        losses: Tensor = forward_op(rows, weight, bias, *teacher, *how.pack())[0]
        return losses
    if not any(wanted):
        return _forward(rows, weight, bias, teacher, how)[0]
    losses = apply(_JensenShannon, rows, weight, bias, teacher, how)
    return losses


def definition(logits: Tensor, teacher: Spread, beta: float, row: RowOptions) -> Tensor:
    """Return the divergence of each row of logits ``(N, V)`` in plain torch code."""
    num_classes = logits.shape[-1]
    present = (teacher.indices >= 0).any(-1)
    log_p = transform_logits(logits.where(present.unsqueeze(-1), 0.0), row).log_softmax(-1)
    place = teacher.indices.masked_fill((teacher.indices < 0) | (teacher.indices >= num_classes), num_classes).long()
    spread = teacher.log_share.unsqueeze(-1).expand(-1, num_classes + 1)
    dense = spread.scatter(-1, place, teacher.log_a)[:, :num_classes]
    return _terms.jensen_shannon(dense, log_p, beta).where(present, 0.0)


# ---- forward and backward


def _forward(
    rows: Tensor, weight: Tensor | None, bias: Tensor | None, teacher: Spread, how: How
) -> tuple[Tensor, Tensor]:
    """Return the losses, and what the backward is to know."""
    kernels, dtype = backends.kernels(how.impl), accumulator_dtype(rows.dtype)
    if weight is None:
        everything = slice(0, rows.shape[0])
        return kernels.jensen_shannon(_dense(rows), teacher.rows(dtype, everything), how.beta, how.row)
    layer = LinearLayer(rows, weight, bias)
    layout = layer.layout(how.chunk_bytes, with_gradient=False)
    scratch = layer.scratch(layout.logits_rows, layer.num_classes, layer.accumulator)
    results = [
        kernels.jensen_shannon(layer.logits(part, scratch), teacher.rows(dtype, part), how.beta, how.row)
        for part in layout.parts(layer.num_rows)
    ]
    losses, saved = results[0] if len(results) == 1 else map(torch.cat, zip(*results, strict=True))
    return losses, saved


def _backward(
    grad: Tensor, rows: Tensor, weight: Tensor | None, bias: Tensor | None, teacher: Spread, saved: Tensor, how: How
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of rows, weight and bias, an empty tensor for each that there is none of."""
    kernels, dtype = backends.kernels(how.impl), accumulator_dtype(rows.dtype)
    grad = grad.to(dtype).contiguous()
    if weight is None:
        out, target = new_gradient(rows), teacher.rows(dtype, slice(0, rows.shape[0]))
        kernels.jensen_shannon_backward(grad, _dense(rows), target, saved, how.beta, how.row, out)
        return out, rows.new_empty(0), rows.new_empty(0)
    layer = LinearLayer(rows, weight, bias)
    layer.ignore(((teacher.indices >= 0) & (teacher.indices < layer.num_classes)).any(-1) & (grad != 0))
    factor = _largest(grad) if layer.compute == torch.float16 and layer.num_rows else None
    if factor is not None:  # in half precision the gradients would underflow
        grad = grad / factor
    results = _sums(grad, layer, teacher, saved, how, kernels).results()
    if factor is not None:
        results = tuple(result * factor.to(result.dtype) for result in results)  # type: ignore[assignment]
    d_rows, d_weight, d_bias = (result.to(rows.dtype) for result in results)
    return d_rows, d_weight, d_bias


def _sums(
    grad: Tensor, layer: LinearLayer, teacher: Spread, saved: Tensor, how: How, kernels: backends.Kernels
) -> GradientSums:
    layout = layer.layout(how.chunk_bytes, with_gradient=True)
    sums = GradientSums(layer, how.wanted, -(-layer.num_rows // layout.grad_rows))
    scratch = layer.scratch(layout.logits_rows, layer.num_classes, layer.accumulator)
    is_narrow = layer.compute != layer.accumulator
    grad_scratch = layer.scratch(layout.grad_rows, layer.num_classes, layer.compute) if is_narrow else scratch
    for chunk in layout.chunks(layer.num_rows):
        for part, place in chunk.parts:
            logits, target = layer.logits(part, scratch), teacher.rows(layer.accumulator, part)
            d_logits = grad_scratch[place]
            kernels.jensen_shannon_backward(grad[part], logits, target, saved[part], how.beta, how.row, d_logits)
            sums.add_part(part, d_logits)
        sums.add_chunk(chunk.rows, grad_scratch[: chunk.rows.stop - chunk.rows.start])
    return sums


def _dense(logits: Tensor) -> Tensor:
    return logits if logits.stride(-1) == 1 else logits.contiguous()


def _largest(grad: Tensor) -> Tensor:
    return grad.abs().amax().clamp(min=torch.finfo(grad.dtype).tiny)


class _JensenShannon(torch.autograd.Function):
    """The node of eager code; the backward recomputes the probabilities from what was saved."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor | None, bias: Tensor | None, teacher: Spread, how: How
    ) -> Tensor:
        losses, saved = _forward(rows, weight, bias, teacher, how)
        ctx.save_for_backward(rows, weight, bias, saved, *teacher)
        ctx.how = how
        return losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, bias, saved, *packed = ctx.saved_tensors
        teacher, how = Spread(*packed), ctx.how
        if is_batched(grad):
            with without_autocast(rows.device.type):
                return *_batched(grad, rows, weight, bias, teacher, how), None, None
        with torch.no_grad():
            results = _backward(grad, rows, weight, bias, teacher, saved, how)
        wanted = [result if use else None for result, use in zip(results, how.wanted, strict=True)]
        return *differentiable_once(wanted, rows, weight, bias, grad), None, None


def _batched(
    grad: Tensor, rows: Tensor, weight: Tensor | None, bias: Tensor | None, teacher: Spread, how: How
) -> list[Tensor | None]:
    """Return the gradients for several incoming ones at once: through plain torch code, for which torch has rules."""
    given = (rows, weight, bias)
    with torch.enable_grad():
        leaves = [None if tensor is None else tensor.detach().requires_grad_() for tensor in given]
        logits = leaves[0]
        assert logits is not None
        if leaves[1] is not None:
            dtype = accumulator_dtype(rows.dtype)
            wide = [None if leaf is None else leaf.to(dtype) for leaf in leaves]
            logits = torch.nn.functional.linear(*wide)  # type: ignore[arg-type]
        losses = definition(logits, teacher, how.beta, how.row)
    asked = [leaf for leaf, use in zip(leaves, how.wanted, strict=True) if use and leaf is not None]
    results = iter(torch.autograd.grad([losses], asked, [grad]))
    return [next(results) if use else None for use in how.wanted]


# ---- as torch operators

_SCHEMA = (
    "Tensor rows, Tensor? weight, Tensor? bias, Tensor indices, Tensor log_a, Tensor log_share{}, float beta,"
    " float logit_scale, float softcap, int chunk_bytes, bool[] wanted, str impl"
)


def _forward_impl(rows: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    return _forward(rows, weight, bias, Spread(*rest[:3]), How.unpack(*rest[3:]))


def _forward_fake(rows: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    del rest
    number, dtype = rows.shape[0], accumulator_dtype(rows.dtype)
    return rows.new_empty(number, dtype=dtype), rows.new_empty((number, SAVED_JENSEN_SHANNON), dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:6], output[1])
    ctx.packed = inputs[6:]
    ctx.set_materialize_grads(False)


def _backward_of_op(ctx: Any, grad: Tensor | None, of_saved: Tensor | None) -> tuple[Any, ...]:
    del of_saved
    rest = (None,) * 9
    if grad is None:
        return None, None, None, *rest
    results = backward_op(grad, *ctx.saved_tensors, *ctx.packed)
    return *(result if use else None for result, use in zip(results, ctx.packed[4], strict=True)), *rest


def _backward_impl(
    grad: Tensor, rows: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _backward(grad, rows, weight, bias, Spread(*rest[:3]), rest[3], How.unpack(*rest[4:]))


def _backward_fake(
    grad: Tensor, rows: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    del grad, bias
    if weight is None:
        return rows.new_empty(rows.shape), rows.new_empty(0), rows.new_empty(0)
    return fake_gradients(rows, weight, rest[-2], rows.dtype)


forward_op = define(
    f"jensen_shannon({_SCHEMA.format('')}) -> (Tensor, Tensor)",
    _forward_impl,
    _forward_fake,
    backward=_backward_of_op,
    setup_context=_setup_context,
)
backward_op = define(
    f"jensen_shannon_backward(Tensor grad, {_SCHEMA.format(', Tensor saved')}) -> (Tensor, Tensor, Tensor)",
    _backward_impl,
    _backward_fake,
)
