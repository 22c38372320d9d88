"""The products of the gradients from the classes that bfloat16 can see, with a product of low rank for all others.

``dX = G W`` and ``dW = G' X`` multiply every column of the gradient G of a chunk's logits, though most classes are
improbable in each of its rows. ``G = P - U - Q``: multiples of p, the mass that lies on all classes, and the target's
entries. U is a product of rank one and is multiplied as one. Columns with entries are kept, and those with the most of
P. For T, what is left of P, stands ``B B' T`` with few orthonormal columns B, which span ``T W`` times random
directions, and the sums of the rows: what of T reaches dX (a randomized range finder, Halko et al. 2011, of T W).

How much that errs is measured before it is used. With matrices Z and S of random signs ``|Z R W|^2`` and ``|R' X S|^2``
are, but for the number of signs, unbiased for ``|R W|^2`` and ``|R' X|^2``, where R is the difference of T and what
stands for it; so are ``|Z G W|^2`` and ``|G' X S|^2`` for the gradients themselves. As few columns are kept as keep
both ratios within the tolerance; where half of the columns are too few, all are. The sums over classes that this takes
are made once, in bands of classes between one number of columns and the next.

A CPU is asked how many columns are kept. On a GPU the number stays there: the products read it (Triton).
"""

from __future__ import annotations

import torch
from torch import Tensor

from smoothloss import _graphs as graphs
from smoothloss import backends
from smoothloss.backends.common import RowOptions, without_autocast
from smoothloss.backends.native import linear as native_linear
from smoothloss.ops.compensated_columns import (
    Candidates,
    Parts,
    capacities,
    classes_named,
    in_halves,
    uniform_mass,
    wide_product,
)
from smoothloss.ops.linear_layer import HAS_OUT_DTYPE, GradientSums, LinearLayer, addmm, matmul, widened
from smoothloss.ops.target import FlatTarget

# The relative error of rounding to bfloat16: half a unit of the last of 8 bits, uniform, over mantissas whose logarithm
# is.
ROUNDING = 2**-8 * (0.541 / 3) ** 0.5
LEAST_ROWS = 256  # fewer are not worth the sums


class CompensatedSums(GradientSums):
    """`GradientSums` whose products leave out classes where what that errs is within a tolerance.

    Attributes:
        columns_kept: of each chunk; on a GPU one element each, which nobody waits for.
    """

    def __init__(
        self, layer: LinearLayer, wanted: list[bool], num_chunks: int, target: FlatTarget, options: RowOptions,
        tolerance: float,
    ) -> None:  # fmt: skip
        """Make room; `tolerance` is in units of what rounding the gradients to bfloat16 errs."""
        super().__init__(layer, wanted, num_chunks)
        self.target, self.options, self.tolerance = target, options, tolerance
        self.columns_kept: list[int | Tensor] = []
        self._on_device = is_on_device(layer.inputs)

    def add_part(self, rows: slice | None, d_logits: Tensor) -> None:
        """Wait for the chunk."""

    def add_chunk(self, rows: slice | None, d_logits: Tensor) -> None:
        """Add to the gradients of hidden states and weight."""
        with without_autocast(d_logits.device.type):
            self._add_chunk(rows, d_logits)

    def _add_chunk(self, rows: slice | None, d_logits: Tensor) -> None:
        parts = self._parts(rows, d_logits)
        if parts is None:
            self.columns_kept.append(self.layer.num_classes)
            self.add_bias(d_logits)
            self.add_inputs(rows, d_logits)
            super().add_chunk(rows, d_logits)
            return
        if not (self._on_device or d_logits.dtype == parts.column_sums.dtype or _has_banded(d_logits.dtype)):
            self.add_bias(d_logits)
        elif self.d_bias is not None:
            self.d_bias += parts.column_sums
        inputs = self.layer.inputs if rows is None else self.layer.inputs[rows]
        d_inputs = self.d_inputs if self.d_inputs is None or rows is None else self.d_inputs[rows]
        if self._on_device:
            self.columns_kept.append(parts.size)
            self._add_on_device(d_logits, inputs, d_inputs, parts)
            return
        size = int(parts.size)
        self.columns_kept.append(size)
        kept = parts.kept[:size].long()
        compact = d_logits.index_select(1, kept)
        if d_inputs is not None:
            _multiply_inputs(compact, self.layer.weight.index_select(0, kept), parts, d_inputs)
        if self.d_weight is not None:
            self._add_weight(self.d_weight, compact, inputs, kept, parts)

    def _parts(self, rows: slice | None, d_logits: Tensor) -> Parts | None:
        is_useless = d_logits.shape[0] < LEAST_ROWS or (self.d_inputs is None and self.d_weight is None)
        if is_useless or self.target.source is not None:  # dense rows are neither entries nor of rank one
            return None
        layer, num_classes = self.layer, self.layer.num_classes
        sizes = capacities(num_classes)
        if not sizes:
            return None
        target = self.target.rows(layer.accumulator, rows)
        named = classes_named(target, num_classes)
        if not self._on_device and int(named.sum()) > sizes[-1]:
            return None
        inputs = layer.inputs if rows is None else layer.inputs[rows]
        uniform = uniform_mass(target, self.options, num_classes, layer.accumulator)
        candidates = Candidates(d_logits, inputs, layer.weight, uniform, named)
        parts = candidates.parts(self.tolerance * ROUNDING)
        return parts if self._on_device or int(parts.size) < num_classes else None

    def _add_weight(self, total: Tensor, compact: Tensor, inputs: Tensor, kept: Tensor, parts: Parts) -> None:
        states = parts.shares.t() @ inputs.to(parts.shares.dtype)
        own = total.new_empty(len(kept), total.shape[1])
        if self._is_first:
            matmul(compact.t(), inputs, own)
            if total.dtype == states.dtype:
                torch.mm(parts.tails.t(), states, out=total)
            elif _has_banded(total.dtype):
                left, right = _paired_halves(parts.tails.t(), states, total.dtype)
                native_linear.banded_matmul(left, right, total)
            else:
                total.copy_(parts.tails.t() @ states)
        else:
            torch.index_select(total, 0, kept, out=own)
            addmm(own, compact.t(), inputs)
            total.addmm_(parts.tails.t(), states)
        total.index_copy_(0, kept, own)
        self._is_first = False

    def _add_on_device(self, d_logits: Tensor, inputs: Tensor, d_inputs: Tensor | None, parts: Parts) -> None:
        """Add to both gradients; which columns are kept, and whether all are, only the device knows."""
        from smoothloss.backends.triton import products

        kept = products.KeptColumns(d_logits, parts.kept, parts.size, capacities(self.layer.num_classes)[-1])
        if d_inputs is not None:
            matmul(*_operands(parts.shares, parts.weight_tails, d_logits.dtype), d_inputs)
            kept.add_rows(d_inputs, self.layer.weight)
        if self.d_weight is not None:
            states = wide_product(parts.shares.t(), inputs)
            tails, states = _operands(parts.tails.t(), states, d_logits.dtype)
            if self._is_first:
                matmul(tails, states, self.d_weight)
            else:
                addmm(self.d_weight, tails, states)
            kept.add_to_rows(self.d_weight, inputs)
            self._is_first = False


@graphs.constant
def unavailable_on_cuda() -> str | None:
    """Return why no columns can be left out on CUDA, or None when they can."""
    if not HAS_OUT_DTYPE:
        return f"there it needs torch 2.8 or newer, this is {torch.__version__}"
    return backends.unavailable("triton", "cuda", torch.bfloat16)


def is_on_device(inputs: Tensor) -> bool:
    """Return whether the number of columns stays on the device of `inputs`."""
    return inputs.is_cuda


def _multiply_inputs(compact: Tensor, weight_kept: Tensor, parts: Parts, out: Tensor) -> None:
    """Write the gradient of the hidden states, rounded once."""
    if compact.dtype == parts.shares.dtype:
        torch.addmm(parts.shares @ parts.weight_tails, compact, weight_kept, out=out)
        return
    if _has_banded(compact.dtype):
        out.copy_(widened(compact, weight_kept, parts.shares.dtype).addmm_(parts.shares, parts.weight_tails))
        return
    # What is put back may cancel against what is kept.
    shares, tails = _paired_halves(parts.shares, parts.weight_tails, compact.dtype)
    matmul(torch.cat((compact, shares), 1), torch.cat((weight_kept, tails)), out)


def _operands(a: Tensor, b: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return two matrices of a dtype whose product is that of a and b, but for what 16 bits leave of both."""
    return (a, b) if a.dtype == dtype else _paired_halves(a, b, dtype)


def _paired_halves(a: Tensor, b: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return two matrices of 16 bits whose product is that of a and b, but for the product of what 16 bits leave."""
    a, rest_of_a = in_halves(a, dtype)
    b, rest_of_b = in_halves(b, dtype)
    return torch.cat((a, a, rest_of_a), 1), torch.cat((b, rest_of_b, b))


def _has_banded(dtype: torch.dtype) -> bool:
    return native_linear.has_widening_matmul("cpu", dtype)
