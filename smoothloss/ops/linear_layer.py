"""The linear layer of the linear op: its GEMMs in the right dtypes, its scratch, and the sums of its gradients.

Logits are computed and kept in the accumulator dtype, and so is the sum of the chunks' weight gradients: rounding
either of them to 16 bits is the largest error of the usual implementations. The operands of the gradients' GEMMs are of
the compute dtype, 16 bits where that is faster.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from smoothloss.backends.common import accumulator_dtype
from smoothloss.backends.native import linear as native_linear

# Bytes of scratch: on the CPU a whole batch at the sizes of recurrent models; on CUDA logits of 1,024 rows and
# gradients of 4,096 at V = 128,256 in 16 bits.
DEFAULT_CHUNK_BYTES = {"cpu": 256 << 20, "cuda": 3 << 29}
_IS_X86 = platform.machine() in ("x86_64", "AMD64")
HAS_OUT_DTYPE = "dtype" in torch.ops.aten.mm.overloads()  # torch >= 2.8, on CUDA


def default_chunk_bytes(device: torch.device) -> int:
    """Return how much scratch the linear op takes on a device when the caller does not say."""
    return DEFAULT_CHUNK_BYTES.get(device.type, DEFAULT_CHUNK_BYTES["cpu"])


class Chunk(NamedTuple):
    """Rows of a batch whose gradient of the logits is held at a time, and the parts whose logits are.

    Attributes:
        rows: the rows in the batch.
        parts: the same rows in pieces, each with the place of its gradients in the chunk.
    """

    rows: slice
    parts: list[tuple[slice, slice]]


class Layout(NamedTuple):
    """How many rows of logits and of their gradients are held at a time.

    With 16-bit gradients there are two levels: the GEMM that adds to the weight's gradient has a cost of its own for
    each call, that of its float32 sum, and wants many rows; the wide logits are needed for few rows at a time.
    """

    logits_rows: int
    grad_rows: int

    @classmethod
    def of(cls, rows: int, classes: int, chunk_bytes: int, wide: int, narrow: int, most: int) -> Layout:
        """Fit scratch of logits of `wide` bytes, and of gradients of `narrow` bytes beside it, to the budget.

        At most `most` rows of logits where the gradients have a scratch of their own.
        """
        if wide == narrow:  # the gradient overwrites the logits
            size = max(1, min(rows, chunk_bytes // (classes * wide)))
            return cls(size, size)
        ratio = 4
        part = chunk_bytes // (classes * (wide + ratio * narrow))
        part = part // 128 * 128 or max(1, part)  # whole tiles of the GEMMs
        return cls(max(1, min(part, most, rows)), max(1, min(ratio * part, rows)))

    def parts(self, rows: int) -> list[slice]:
        """Return the pieces of a batch whose logits are held at a time; one empty piece of an empty batch."""
        return [part for chunk in self.chunks(rows) for part, _ in chunk.parts]

    def chunks(self, rows: int) -> Iterator[Chunk]:
        """Return the chunks of a batch; one empty chunk of an empty batch."""
        for start in range(0, max(rows, 1), self.grad_rows):
            stop = min(start + self.grad_rows, rows)
            parts = []
            for first in range(start, max(stop, start + 1), self.logits_rows):
                last = min(first + self.logits_rows, stop)
                parts.append((slice(first, last), slice(first - start, last - start)))
            yield Chunk(slice(start, stop), parts)


class LinearLayer:
    """``inputs @ weight.T + bias`` in the dtypes that its GEMMs run in."""

    def __init__(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        """Cast what has to be cast, once for all chunks."""
        self.param_dtype, self.accumulator = inputs.dtype, accumulator_dtype(inputs.dtype)
        self.compute = inputs.dtype if has_fast_gemm(inputs.device.type, inputs.dtype) else self.accumulator
        self.inputs = inputs.contiguous().to(self.compute)
        self.weight = weight.contiguous().to(self.compute)
        self.bias = None if bias is None else bias.contiguous().to(self.accumulator)
        self._given = inputs
        self._wide_weight: Tensor | None = None

    @property
    def num_rows(self) -> int:
        """N."""
        return self.inputs.shape[0]

    @property
    def num_classes(self) -> int:
        """V."""
        return self.weight.shape[0]

    def layout(self, chunk_bytes: int, with_gradient: bool) -> Layout:
        """Return how the batch is cut; without gradients the logits have the whole budget."""
        narrow = self.compute.itemsize if with_gradient else self.accumulator.itemsize
        # On CPUs the wide logits of a part stay in the cache, where the row kernel finds them.
        most = 256 if self.inputs.device.type == "cpu" else self.num_rows
        return Layout.of(self.num_rows, self.num_classes, chunk_bytes, self.accumulator.itemsize, narrow, most)

    def scratch(self, rows: int, classes: int, dtype: torch.dtype) -> Tensor:
        """Return uninitialised memory ``(rows, classes)``."""
        return native_linear.empty(self.inputs, (rows, classes), dtype)

    def ignore(self, mass: Tensor | None, rows: slice | None = None) -> None:
        """Take inputs of rows without mass for zeros: whatever they hold, 0 times NaN would reach a gradient."""
        if mass is None:
            return
        kept = (mass != 0).unsqueeze(-1)
        if rows is None:
            self.inputs = self.inputs.where(kept, 0.0)
            return
        if self.inputs is self._given:
            self.inputs = self.inputs.clone()
        self.inputs[rows] = self.inputs[rows].where(kept, 0.0)

    def logits(self, rows: slice | None, scratch: Tensor, classes: slice | None = None) -> Tensor:
        """Return the logits of some rows and classes, None for all, in the accumulator dtype, in the scratch."""
        inputs = self.inputs if rows is None else self.inputs[rows]
        weight = self.weight if classes is None else self.weight[classes]
        out = scratch
        if scratch.shape != (inputs.shape[0], weight.shape[0]):
            out = scratch.view(-1)[: inputs.shape[0] * weight.shape[0]].view(inputs.shape[0], weight.shape[0])
        bias = self.bias if classes is None or self.bias is None else self.bias[classes]
        if self.compute == self.accumulator or can_widen(inputs.device.type):
            matmul(inputs, weight.t(), out)
        elif native_linear.has_widening_matmul(inputs.device.type, self.compute):
            native_linear.widening_matmul(inputs, weight, out, bias)
            return out
        else:
            wide = self._widened_weight()
            matmul(inputs.to(self.accumulator), (wide if classes is None else wide[classes]).t(), out)
        if bias is not None:
            out += bias
        return out

    def _widened_weight(self) -> Tensor:
        if self._wide_weight is None:
            self._wide_weight = self.weight.to(self.accumulator)
        return self._wide_weight


class GradientSums:
    """The gradients of the layer, added up chunk by chunk in the accumulator dtype; None where not wanted.

    They stay unscaled until the backward, which folds the incoming gradient into their last rounding: scaled by 1/N the
    gradients of the logits would underflow in half precision.
    """

    def __init__(self, layer: LinearLayer, wanted: list[bool], num_chunks: int) -> None:
        """Make room for what is wanted."""
        self.layer = layer
        # With one chunk there is nothing to add up, and the product is taken as the GEMM rounds it.
        self.dtype = gradient_dtype(layer.inputs.device.type, layer.param_dtype)
        dtype = self.dtype if num_chunks == 1 else layer.accumulator
        self.d_inputs = native_linear.empty(layer.inputs, layer.inputs.shape, dtype) if wanted[0] else None
        self.d_weight = native_linear.empty(layer.weight, layer.weight.shape, dtype) if wanted[1] else None
        self.d_bias = layer.inputs.new_zeros(layer.num_classes, dtype=layer.accumulator) if wanted[2] else None
        self._is_first = True

    def add_part(self, rows: slice | None, d_logits: Tensor) -> None:
        """Add what comes of the gradient of some rows' logits, None for all, but for the weight's gradient."""
        self.add_inputs(rows, d_logits)
        self.add_bias(d_logits)

    def add_inputs(self, rows: slice | None, d_logits: Tensor) -> None:
        """Add to the hidden states' gradient."""
        if self.d_inputs is not None:
            matmul(d_logits, self.layer.weight, self.d_inputs if rows is None else self.d_inputs[rows])

    def add_bias(self, d_logits: Tensor) -> None:
        """Add to the bias's gradient."""
        if self.d_bias is not None:
            self.d_bias += column_sums(d_logits, self.d_bias.dtype)

    def add_chunk(self, rows: slice | None, d_logits: Tensor) -> None:
        """Add to the weight's gradient."""
        if self.d_weight is None:
            return
        inputs = self.layer.inputs if rows is None else self.layer.inputs[rows]
        if self._is_first:
            matmul(d_logits.t(), inputs, self.d_weight)
        else:
            addmm(self.d_weight, d_logits.t(), inputs)
        self._is_first = False

    def results(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the three gradients, an empty tensor for each that was not wanted."""
        if self.d_weight is not None and self._is_first:  # no rows at all
            self.d_weight.zero_()
        wide = _present(self.layer, self.d_inputs, self.d_weight, self.d_bias)
        return wide[0].to(self.dtype), wide[1].to(self.dtype), wide[2].to(self.dtype)


class ClassSums:
    """The gradients of the layer, slice of the vocabulary by slice; None where not wanted.

    A slice of the gradient of weight and bias is final, so it is written in the dtype of its parameter.
    """

    def __init__(self, layer: LinearLayer, wanted: list[bool], factor: Tensor | None) -> None:
        """Make room for what is wanted; `factor` multiplies every result."""
        self.layer, self.factor = layer, factor
        like, wide = layer.inputs, layer.accumulator
        narrow = layer.param_dtype
        self.d_inputs = torch.zeros_like(like, dtype=wide) if wanted[0] else None
        self.d_weight = native_linear.empty(layer.weight, layer.weight.shape, narrow) if wanted[1] else None
        self.d_bias = like.new_empty(layer.num_classes, dtype=narrow) if wanted[2] else None

    def add(self, classes: slice, d_logits: Tensor) -> None:
        """Add what comes of the gradient of the logits ``(N, classes)``."""
        if self.d_inputs is not None:
            addmm(self.d_inputs, d_logits, self.layer.weight[classes])
        if self.d_weight is not None:
            part = self.d_weight[classes]
            if self.factor is None and part.dtype == d_logits.dtype:
                torch.mm(d_logits.t(), self.layer.inputs, out=part)
            else:
                wide = torch.empty_like(part, dtype=self.layer.accumulator)
                matmul(d_logits.t(), self.layer.inputs, wide)
                part.copy_(wide if self.factor is None else wide.mul_(self.factor))
        if self.d_bias is not None:
            total = column_sums(d_logits, self.layer.accumulator)
            self.d_bias[classes] = total if self.factor is None else total * self.factor

    def results(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the three gradients, an empty tensor for each that was not wanted."""
        if self.d_inputs is not None and self.factor is not None:
            self.d_inputs *= self.factor
        return _present(self.layer, self.d_inputs, self.d_weight, self.d_bias)


def _present(layer: LinearLayer, *grads: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    present = [layer.inputs.new_empty(0, dtype=layer.accumulator) if grad is None else grad for grad in grads]
    return present[0], present[1], present[2]


def matmul(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Compute ``out = a @ b`` in the dtype of `out`, with 16-bit operands where the GEMM can do that."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    elif can_widen(a.device.type):
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    else:
        out.copy_(torch.mm(a, b))  # accumulated in float32, rounded once


def column_sums(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``matrix.sum(0, dtype=dtype)``."""
    if matrix.dtype == dtype or not (can_widen(matrix.device.type) or _has_own_widening(matrix, dtype)):
        return matrix.sum(0, dtype=dtype)
    # torch's sum makes a wide copy first: on CUDA a scratch of four times a matrix (4096, 2688) in bfloat16, on the CPU
    # ten times as much time. A product has neither.
    return widened(matrix.new_ones(1, matrix.shape[0]), matrix, dtype)[0]


def widened(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``a @ b`` in a dtype at least as wide as theirs, rounded to no other where that is to be had."""
    out = a.new_empty(a.shape[0], b.shape[1], dtype=dtype)
    if _has_own_widening(a, dtype):
        native_linear.banded_matmul(a, b, out)
    else:
        matmul(a, b, out)
    return out


def _has_own_widening(matrix: Tensor, dtype: torch.dtype) -> bool:
    return dtype == torch.float32 and native_linear.has_widening_matmul(matrix.device.type, matrix.dtype)


def addmm(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Compute ``total += a @ b`` in the dtype of `total`."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif can_widen(a.device.type):
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total += torch.mm(a, b)


def gradient_dtype(device_type: str, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of unscaled gradients of a layer of `dtype`: wide, but where the GEMMs round to bfloat16."""
    rounds = dtype == torch.bfloat16 and has_fast_gemm(device_type, dtype) and not can_widen(device_type)
    return dtype if rounds else accumulator_dtype(dtype)


def can_widen(device_type: str) -> bool:
    """Return whether torch's GEMMs of 16-bit operands have float32 results."""
    return HAS_OUT_DTYPE and device_type == "cuda"


def has_fast_gemm(device_type: str, dtype: torch.dtype) -> bool:
    """Return whether GEMMs with operands of this dtype are at least as fast as with float32."""
    if device_type != "cpu" or dtype not in (torch.float16, torch.bfloat16):
        return True
    if dtype == torch.bfloat16 and _IS_X86:
        # With AVX-512 alone oneDNN says that it can, and takes four times as long (benchmarks/NOTES.md).
        return native_linear.has_widening_matmul(device_type, dtype)
    return _has_fast_onednn(dtype)


@functools.cache
def _has_fast_onednn(dtype: torch.dtype) -> bool:
    name = "_is_mkldnn_bf16_supported" if dtype == torch.bfloat16 else "_is_mkldnn_fp16_supported"
    supported = getattr(torch.ops.mkldnn, name, None)
    return supported is not None and bool(supported())
