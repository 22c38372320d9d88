"""The primitive on hidden states: ``linear`` and loss together, chunk by chunk, never holding the (N, V) logits.

One scratch of ``chunk_bytes`` holds the logits of a chunk of rows and then, in place, their gradient. Logits are
computed and kept in the accumulator dtype, and so is the sum of the chunks' weight gradients: rounding either of them
to 16 bits is the largest error of the usual implementations.

"mean" and "sum" make the gradients in the forward (one GEMM for the logits, two for the gradients), with an incoming
gradient of one; the backward multiplies by the true one. "none" recomputes the logits in the backward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from smoothloss.ops._autograd import differentiable_once
from smoothloss.ops._checks import as_int32
from smoothloss.ops._register import OPTIONS_SCHEMA, define
from smoothloss.ops.dispatch import implementation
from smoothloss.ops.options import RowOptions
from smoothloss.ops.reference import accumulator_dtype
from smoothloss.ops.sparse_cross_entropy import reduce

DEFAULT_CHUNK_BYTES = 256 * 2**20


class LinearTarget(NamedTuple):
    """A sparse target prepared for the kernels: int32 indices, weights and uniform mass in the accumulator dtype."""

    indices: Tensor
    weights: Tensor
    uniform: Tensor | None

    def rows(self, part: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the target of the rows `part`."""
        return self.indices[part], self.weights[part], None if self.uniform is None else self.uniform[part]


class _Classifier:
    """The linear layer in the dtypes that its GEMMs run in, with a reusable scratch for a chunk of logits."""

    def __init__(self, inputs: Tensor, weight: Tensor, bias: Tensor | None, chunk_bytes: int) -> None:
        self.accumulator = accumulator_dtype(inputs.dtype)
        # CPUs gain nothing from 16-bit GEMM operands here; on CUDA they feed the tensor cores.
        self.compute = self.accumulator if inputs.device.type == "cpu" else inputs.dtype
        self.inputs, self.weight = inputs, weight.to(self.compute)
        self.bias = None if bias is None else bias.to(self.accumulator)
        rows, classes = inputs.shape[0], weight.shape[0]
        self.chunk = max(1, min(rows, chunk_bytes // (classes * self.accumulator.itemsize)))
        self.scratch = inputs.new_empty(self.chunk, classes, dtype=self.accumulator)

    def chunks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield the slice of rows, their inputs in the compute dtype, and their logits (in the scratch)."""
        for start in range(0, self.inputs.shape[0], self.chunk):
            part = slice(start, min(start + self.chunk, self.inputs.shape[0]))
            inputs = self.inputs[part].to(self.compute)
            logits = self.scratch[: inputs.shape[0]]
            _matmul(inputs, self.weight.t(), out=logits)
            if self.bias is not None:
                logits += self.bias
            yield part, inputs, logits

    def grad_buffer(self, logits: Tensor) -> Tensor:
        """Return where the gradient of `logits` goes: over them, or to a buffer of the compute dtype."""
        return logits if logits.dtype == self.compute else torch.empty_like(logits, dtype=self.compute)


class _Gradients:
    """The gradients of the linear layer, added up chunk by chunk; None where not wanted."""

    def __init__(self, classifier: _Classifier, wanted: list[bool]) -> None:
        inputs, weight = classifier.inputs, classifier.weight
        self.weight = weight
        # The gradient of the inputs stays unscaled until the backward, where 16 bits could underflow: keep it wide.
        self.d_inputs = torch.empty_like(inputs, dtype=classifier.accumulator) if wanted[0] else None
        self.d_weight = torch.zeros_like(weight, dtype=classifier.accumulator) if wanted[1] else None
        self.d_bias = inputs.new_zeros(weight.shape[0], dtype=classifier.accumulator) if wanted[2] else None

    def add(self, part: slice, inputs: Tensor, d_logits: Tensor) -> None:
        """Add what the rows `part` contribute, from the gradient of their logits."""
        if self.d_inputs is not None:
            _matmul(d_logits, self.weight, out=self.d_inputs[part])
        if self.d_weight is not None:
            _addmm(self.d_weight, d_logits.t(), inputs)
        if self.d_bias is not None:
            self.d_bias += d_logits.sum(0, dtype=self.d_bias.dtype)

    def results(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the three gradients, an empty tensor for each that was not wanted."""
        wide = [like.new_empty(0) if grad is None else grad for grad in (self.d_inputs, self.d_weight, self.d_bias)]
        return wide[0], wide[1], wide[2]


def _matmul(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Compute ``out = a @ b``, with 16-bit operands and a float32 result where the GEMM can do that."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    elif _HAS_OUT_DTYPE:
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    else:
        torch.mm(a.to(out.dtype), b.to(out.dtype), out=out)


def _addmm(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Compute ``total += a @ b`` in the dtype of `total`."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif _HAS_OUT_DTYPE:
        total += torch.mm(a, b, out_dtype=total.dtype)
    else:
        total.addmm_(a.to(total.dtype), b.to(total.dtype))


_HAS_OUT_DTYPE = "dtype" in torch.ops.aten.mm.overloads()  # torch >= 2.8


def _setup(
    inputs: Tensor, weight: Tensor, bias: Tensor | None,
    indices: Tensor, weights: Tensor, uniform: Tensor | None, chunk_bytes: int,
) -> tuple[_Classifier, LinearTarget]:  # fmt: skip
    classifier = _Classifier(inputs.contiguous(), weight, bias, chunk_bytes)
    dtype = classifier.accumulator
    uniform = None if uniform is None else uniform.to(dtype).contiguous()
    target = LinearTarget(as_int32(indices, weight.shape[0]), weights.to(dtype).contiguous(), uniform)
    return classifier, target


def _fused(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, indices: Tensor, weights: Tensor, uniform: Tensor | None,
    label_smoothing: float, entropy: float, z_loss: float, logit_scale: float, softcap: float,
    reduction: str, chunk_bytes: int, wanted: list[bool], impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Loss and unscaled gradients in one go."""
    options = RowOptions(label_smoothing, entropy, z_loss, logit_scale, softcap)
    classifier, target = _setup(inputs, weight, bias, indices, weights, uniform, chunk_bytes)
    gradients = _Gradients(classifier, wanted)
    loss, mass = (inputs.new_empty(inputs.shape[0], dtype=classifier.accumulator) for _ in range(2))
    kernels = implementation(impl)
    for part, chunk, logits in classifier.chunks():
        d_logits = classifier.grad_buffer(logits)
        loss[part], mass[part] = kernels.sparse_cross_entropy_forward_backward(
            logits, *target.rows(part), options, d_logits
        )
        gradients.add(part, chunk, d_logits)
    return *reduce(loss, mass, reduction), *gradients.results(loss)


def _fused_fake(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, indices: Tensor, weights: Tensor, uniform: Tensor | None,
    label_smoothing: float, entropy: float, z_loss: float, logit_scale: float, softcap: float,
    reduction: str, chunk_bytes: int, wanted: list[bool], impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    del bias, indices, weights, uniform, label_smoothing, entropy, z_loss, logit_scale, softcap, chunk_bytes, impl
    dtype = accumulator_dtype(inputs.dtype)
    shapes = (inputs.shape, weight.shape, weight.shape[:1])
    grads = [inputs.new_empty(shape if use else (0,), dtype=dtype) for shape, use in zip(shapes, wanted, strict=True)]
    scale = inputs.new_empty(() if reduction == "mean" else 0, dtype=dtype)
    return inputs.new_empty((), dtype=dtype), scale, grads[0], grads[1], grads[2]


def _forward(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, indices: Tensor, weights: Tensor, uniform: Tensor | None,
    label_smoothing: float, entropy: float, z_loss: float, logit_scale: float, softcap: float,
    reduction: str, chunk_bytes: int, impl: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Only the loss, with what a recomputing backward needs."""
    options = RowOptions(label_smoothing, entropy, z_loss, logit_scale, softcap)
    classifier, target = _setup(inputs, weight, bias, indices, weights, uniform, chunk_bytes)
    loss, mass = (inputs.new_empty(inputs.shape[0], dtype=classifier.accumulator) for _ in range(2))
    lse = inputs.new_empty(inputs.shape[0], dtype=torch.float64)
    row_entropy = loss.new_empty(inputs.shape[0] if entropy else 0)
    kernels = implementation(impl)
    for part, _, logits in classifier.chunks():
        loss[part], lse[part], chunk_entropy, mass[part] = kernels.sparse_cross_entropy_forward(
            logits, *target.rows(part), options
        )
        if entropy:
            row_entropy[part] = chunk_entropy
    return reduce(loss, mass, reduction)[0], lse, row_entropy


def _forward_fake(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, indices: Tensor, weights: Tensor, uniform: Tensor | None,
    label_smoothing: float, entropy: float, z_loss: float, logit_scale: float, softcap: float,
    reduction: str, chunk_bytes: int, impl: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    del weight, bias, indices, weights, uniform, label_smoothing, z_loss, logit_scale, softcap, chunk_bytes, impl
    rows, dtype = inputs.shape[0], accumulator_dtype(inputs.dtype)
    loss = inputs.new_empty(rows if reduction == "none" else (), dtype=dtype)
    lse = inputs.new_empty(rows, dtype=torch.float64)
    return loss, lse, inputs.new_empty(rows if entropy else 0, dtype=dtype)


def _backward(
    grad: Tensor, inputs: Tensor, weight: Tensor, bias: Tensor | None, lse: Tensor, row_entropy: Tensor,
    indices: Tensor, weights: Tensor, uniform: Tensor | None, mass: Tensor | None,
    label_smoothing: float, entropy: float, z_loss: float, logit_scale: float, softcap: float,
    chunk_bytes: int, wanted: list[bool], impl: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Recompute the logits of each chunk and from them the gradients, for an incoming gradient of every row."""
    options = RowOptions(label_smoothing, entropy, z_loss, logit_scale, softcap)
    classifier, target = _setup(inputs, weight, bias, indices, weights, uniform, chunk_bytes)
    gradients = _Gradients(classifier, wanted)
    grad = grad.to(classifier.accumulator).contiguous()
    mass = None if mass is None else mass.to(classifier.accumulator).contiguous()
    kernels = implementation(impl)
    for part, chunk, logits in classifier.chunks():
        d_logits = classifier.grad_buffer(logits)
        kernels.sparse_cross_entropy_backward(
            grad[part] if grad.numel() > 1 else grad, logits, lse[part], row_entropy[part] if entropy else row_entropy,
            *target.rows(part), options, d_logits, None if mass is None else mass[part],
        )  # fmt: skip
        gradients.add(part, chunk, d_logits)
    return gradients.results(grad)


def _backward_fake(grad: Tensor, inputs: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    del grad
    wanted = rest[-2]
    dtype = accumulator_dtype(inputs.dtype)
    shapes = (inputs.shape, weight.shape, weight.shape[:1])
    grads = [inputs.new_empty(shape if use else (0,), dtype=dtype) for shape, use in zip(shapes, wanted, strict=True)]
    return grads[0], grads[1], grads[2]


def _select_forward(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, indices: Tensor, chunk_bytes: int, impl: str
) -> tuple[Tensor, Tensor]:
    classifier, target = _setup(inputs, weight, bias, indices, inputs.new_empty(0), None, chunk_bytes)
    lse = inputs.new_empty(inputs.shape[0], dtype=torch.float64)
    selected = inputs.new_empty(indices.shape, dtype=classifier.accumulator)
    for part, _, logits in classifier.chunks():
        lse[part], selected[part] = implementation(impl).logsumexp_and_select_forward(logits, target.indices[part])
    return lse, selected


def _select_forward_fake(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, indices: Tensor, chunk_bytes: int, impl: str
) -> tuple[Tensor, Tensor]:
    del weight, bias, chunk_bytes, impl
    dtype = accumulator_dtype(inputs.dtype)
    return inputs.new_empty(inputs.shape[0], dtype=torch.float64), inputs.new_empty(indices.shape, dtype=dtype)


_LINEAR_SCHEMA = "Tensor inputs, Tensor weight, Tensor? bias"
_TARGET_SCHEMA = "Tensor indices, Tensor weights, Tensor? uniform"
fused_op = define(
    f"linear_sparse_cross_entropy_with_gradients({_LINEAR_SCHEMA}, {_TARGET_SCHEMA}, {OPTIONS_SCHEMA}, str reduction,"
    " int chunk_bytes, bool[] wanted, str impl) -> (Tensor loss, Tensor scale, Tensor, Tensor, Tensor)",
    _fused,
    _fused_fake,
)
forward_op = define(
    f"linear_sparse_cross_entropy({_LINEAR_SCHEMA}, {_TARGET_SCHEMA}, {OPTIONS_SCHEMA}, str reduction,"
    " int chunk_bytes, str impl) -> (Tensor loss, Tensor lse, Tensor row_entropy)",
    _forward,
    _forward_fake,
)
backward_op = define(
    f"linear_sparse_cross_entropy_backward(Tensor grad, {_LINEAR_SCHEMA}, Tensor lse, Tensor row_entropy,"
    f" {_TARGET_SCHEMA}, Tensor? mass, {OPTIONS_SCHEMA}, int chunk_bytes, bool[] wanted, str impl)"
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


def _cast(grads: Sequence[Tensor], like: tuple[Tensor | None, ...], wanted: list[bool]) -> list[Tensor | None]:
    return [
        grad.to(tensor.dtype) if use and tensor is not None else None
        for grad, tensor, use in zip(grads, like, wanted, strict=True)
    ]


class LinearSparseCrossEntropy(torch.autograd.Function):
    """Reduced ("mean", "sum") loss of ``inputs @ weight.T + bias``; the gradients are made in the forward."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None,
        indices: Tensor, weights: Tensor, uniform: Tensor | None,
        options: RowOptions, reduction: str, chunk_bytes: int, wanted: list[bool], impl: str,
    ) -> Tensor:  # fmt: skip
        """Compute the loss and the gradients for an incoming gradient of one."""
        loss, scale, *grads = fused_op(
            inputs, weight, bias, indices, weights, uniform, *options, reduction, chunk_bytes, wanted, impl
        )
        ctx.save_for_backward(scale, inputs, weight, bias, *grads)
        ctx.wanted, ctx.is_mean = wanted, reduction == "mean"
        result: Tensor = loss
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the saved gradients, in the accumulator dtype, and only then round them."""
        scale, inputs, weight, bias, *grads = ctx.saved_tensors
        with torch.no_grad():
            factor = grad * scale if ctx.is_mean else grad
            scaled = _cast([saved * factor for saved in grads], (inputs, weight, bias), ctx.wanted)
        return *differentiable_once(scaled, inputs, weight, bias, grad), *(None,) * 8


class LinearSparseCrossEntropyRecompute(torch.autograd.Function):
    """Loss of every row of ``inputs @ weight.T + bias``; the backward computes the logits again."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None,
        indices: Tensor, weights: Tensor, uniform: Tensor | None,
        options: RowOptions, chunk_bytes: int, wanted: list[bool], impl: str,
    ) -> Tensor:  # fmt: skip
        """Compute the losses."""
        loss, lse, row_entropy = forward_op(
            inputs, weight, bias, indices, weights, uniform, *options, "none", chunk_bytes, impl
        )
        ctx.save_for_backward(inputs, weight, bias, indices, weights, uniform, lse, row_entropy)
        ctx.options, ctx.chunk_bytes, ctx.wanted, ctx.impl = options, chunk_bytes, wanted, impl
        result: Tensor = loss
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Recompute chunk by chunk."""
        inputs, weight, bias, indices, weights, uniform, lse, row_entropy = ctx.saved_tensors
        with torch.no_grad():
            wide = backward_op(
                grad, inputs, weight, bias, lse, row_entropy, indices, weights, uniform, None,
                *ctx.options, ctx.chunk_bytes, ctx.wanted, ctx.impl,
            )  # fmt: skip
            grads = _cast(wide, (inputs, weight, bias), ctx.wanted)
        return *differentiable_once(grads, inputs, weight, bias, grad), *(None,) * 7


class LinearLogsumexpAndSelect(torch.autograd.Function):
    """``(logsumexp, gather)`` of the logits ``inputs @ weight.T + bias``, which never exist as a whole."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, indices: Tensor,
        chunk_bytes: int, wanted: list[bool], impl: str,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Compute both, chunk by chunk."""
        lse, selected = select_op(inputs, weight, bias, indices, chunk_bytes, impl)
        ctx.save_for_backward(inputs, weight, bias, indices, lse)
        ctx.chunk_bytes, ctx.wanted, ctx.impl = chunk_bytes, wanted, impl
        return lse, selected

    @staticmethod
    def backward(ctx: Any, grad_lse: Tensor, grad_selected: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of ``grad_lse * p + scatter_add(grad_selected)``, recomputing the logits."""
        inputs, weight, bias, indices, lse = ctx.saved_tensors
        with torch.no_grad():
            wide = backward_op(
                grad_selected.new_ones(1), inputs, weight, bias, lse, grad_selected.new_empty(0),
                indices, -grad_selected, None, grad_lse,
                *RowOptions(), ctx.chunk_bytes, ctx.wanted, ctx.impl,
            )  # fmt: skip
            grads = _cast(wide, (inputs, weight, bias), ctx.wanted)
        return *differentiable_once(grads, inputs, weight, bias, grad_lse, grad_selected), *(None,) * 4


def wanted_gradients(*tensors: Tensor | None) -> list[bool]:
    """Return for which of (inputs, weight, bias) a gradient is asked for."""
    enabled = torch.is_grad_enabled()
    return [enabled and tensor is not None and tensor.requires_grad for tensor in tensors]
