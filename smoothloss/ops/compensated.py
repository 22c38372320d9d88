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
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from smoothloss.backends.common import RowOptions, RowTarget, mass_of, slots_of
from smoothloss.backends.native import linear as native_linear
from smoothloss.ops.linear_layer import GradientSums, LinearLayer, addmm, matmul, widened
from smoothloss.ops.target import FlatTarget

# The relative error of rounding to bfloat16: half a unit of the last of 8 bits, uniform, over mantissas whose logarithm
# is.
ROUNDING = 2**-8 * (0.541 / 3) ** 0.5
LEAST_ROWS = 256  # fewer are not worth the sums
SIGNS = 16
# Of the range finder, and from how many of the classes on it looks: the best columns of few are not those of many.
DIRECTIONS, SPANS = 16, (1 / 8, 1 / 4)
# How many of the classes may be kept: each number a fifth more than the one before.
CAPACITIES = tuple(2 ** (step / 4) / 32 for step in range(17))


class CompensatedSums(GradientSums):
    """`GradientSums` whose products leave out classes where what that errs is within a tolerance.

    Attributes:
        columns_kept: of each chunk.
    """

    def __init__(
        self, layer: LinearLayer, wanted: list[bool], num_chunks: int, target: FlatTarget, options: RowOptions,
        tolerance: float,
    ) -> None:  # fmt: skip
        """Make room; `tolerance` is in units of what rounding the gradients to bfloat16 errs."""
        super().__init__(layer, wanted, num_chunks)
        self.target, self.options, self.tolerance = target, options, tolerance
        self.columns_kept: list[int] = []

    def add_part(self, rows: slice | None, d_logits: Tensor) -> None:
        """Wait for the chunk."""

    def add_chunk(self, rows: slice | None, d_logits: Tensor) -> None:
        """Add to the gradients of hidden states and weight."""
        parts = self._parts(rows, d_logits)
        self.columns_kept.append(self.layer.num_classes if parts is None else len(parts.kept))
        if parts is None or (d_logits.dtype != parts.column_sums.dtype and not _has_banded(d_logits.dtype)):
            self.add_bias(d_logits)
        elif self.d_bias is not None:
            self.d_bias += parts.column_sums
        if parts is None:
            self.add_inputs(rows, d_logits)
            super().add_chunk(rows, d_logits)
            return
        compact = d_logits.index_select(1, parts.kept)
        inputs = self.layer.inputs if rows is None else self.layer.inputs[rows]
        if self.d_inputs is not None:
            _multiply_inputs(compact, parts, self.d_inputs if rows is None else self.d_inputs[rows])
        if self.d_weight is not None:
            self._add_weight(self.d_weight, compact, inputs, parts)

    def _parts(self, rows: slice | None, d_logits: Tensor) -> Parts | None:
        is_useless = d_logits.shape[0] < LEAST_ROWS or (self.d_inputs is None and self.d_weight is None)
        if is_useless or self.target.source is not None:  # dense rows are neither entries nor of rank one
            return None
        layer, num_classes = self.layer, self.layer.num_classes
        target = self.target.rows(layer.accumulator, rows)
        named = classes_named(target, num_classes)
        least = int(named.sum())
        sizes = sorted({size for share in CAPACITIES if least <= (size := int(share * num_classes))})
        if not sizes:
            return None
        inputs = layer.inputs if rows is None else layer.inputs[rows]
        uniform = uniform_mass(target, self.options, num_classes, layer.accumulator)
        candidates = _Candidates(d_logits, inputs, layer.weight, uniform, named, sizes)
        low, high = 0, len(sizes)
        while low < high:
            middle = (low + high) // 2
            if candidates.error(middle) <= self.tolerance * ROUNDING:  # false of nan
                high = middle
            else:
                low = middle + 1
        return candidates.parts(low) if low < len(sizes) else None

    def _add_weight(self, total: Tensor, compact: Tensor, inputs: Tensor, parts: Parts) -> None:
        states = parts.shares.t() @ inputs.to(parts.shares.dtype)
        own = total.new_empty(len(parts.kept), total.shape[1])
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
            torch.index_select(total, 0, parts.kept, out=own)
            addmm(own, compact.t(), inputs)
            total.addmm_(parts.tails.t(), states)
        total.index_copy_(0, parts.kept, own)
        self._is_first = False


def _multiply_inputs(compact: Tensor, parts: Parts, out: Tensor) -> None:
    """Write the gradient of the hidden states, rounded once."""
    if compact.dtype == parts.shares.dtype:
        torch.addmm(parts.shares @ parts.weight_tails, compact, parts.weight_kept, out=out)
        return
    if _has_banded(compact.dtype):
        out.copy_(widened(compact, parts.weight_kept, parts.shares.dtype).addmm_(parts.shares, parts.weight_tails))
        return
    # What is put back may cancel against what is kept.
    shares, tails = _paired_halves(parts.shares, parts.weight_tails, compact.dtype)
    matmul(torch.cat((compact, shares), 1), torch.cat((parts.weight_kept, tails)), out)


def _paired_halves(a: Tensor, b: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return two matrices of 16 bits whose product is that of a and b, but for the product of what 16 bits leave."""
    a, rest_of_a = _halves(a, dtype)
    b, rest_of_b = _halves(b, dtype)
    return torch.cat((a, a, rest_of_a), 1), torch.cat((b, rest_of_b, b))


def _halves(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    high = values.to(dtype)
    return high, (values - high).to(dtype)


def _has_banded(dtype: torch.dtype) -> bool:
    return native_linear.has_widening_matmul("cpu", dtype)


class Parts(NamedTuple):
    """What stands for the gradient of a chunk's logits: columns that are kept, and a product for the others.

    All but `kept` and `weight_kept` are of the accumulator dtype.

    Attributes:
        kept: ``(K,)`` the classes that are kept.
        weight_kept: ``(K, D)``, their rows of the weight.
        shares: ``(N, C)`` what each row has of each tail.
        tails: ``(C, V)`` the tails, 0 in classes that are kept.
        weight_tails: ``(C, D)``, ``tails @ weight``.
        column_sums: ``(V,)`` of the gradient of the logits.
    """

    kept: Tensor
    weight_kept: Tensor
    shares: Tensor
    tails: Tensor
    weight_tails: Tensor
    column_sums: Tensor


def classes_named(target: RowTarget, num_classes: int) -> Tensor:
    """Return which classes the entries of a target name, ``(V,)``."""
    indices = slots_of(target)[0].flatten().long()
    filled = (indices >= 0) & (indices < num_classes)
    marks = torch.zeros(num_classes + 1, dtype=torch.bool, device=indices.device)
    return marks.index_fill_(0, indices.where(filled, num_classes), True)[:-1]


def uniform_mass(target: RowTarget, options: RowOptions, num_classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return u ``(N,)`` and the prior ``(V,)`` of the mass on all classes, which has ``-u prior'`` in the gradient."""
    eps = options.label_smoothing
    uniform = torch.zeros(len(target.indices), dtype=dtype, device=target.indices.device)
    # Behind a softcap every logit has a factor of its own, and this mass is left to the tails.
    if not options.softcap and (eps or target.uniform is not None):
        uniform = eps * mass_of(target, num_classes).to(dtype)
        if target.uniform is not None:
            uniform = uniform + (1 - eps) * target.uniform
        uniform = uniform * options.logit_scale
    prior = uniform.new_full((num_classes,), 1 / num_classes) if target.prior is None else target.prior
    return uniform, prior


class _Candidates:
    """What is left out and what stands for it, for each of some numbers of columns; see the module.

    The classes are in the order in which they are kept: first those that entries name, then by how much of P they have.
    """

    def __init__(
        self, d_logits: Tensor, inputs: Tensor, weight: Tensor, uniform: tuple[Tensor, Tensor], named: Tensor,
        sizes: list[int],
    ) -> None:  # fmt: skip
        """Sum up gradient ``(N, V)``, inputs ``(N, D)`` and weight ``(V, D)``, which are of one dtype."""
        self.uniform, self.prior = uniform
        self.dtype, self.wide, self.sizes = d_logits.dtype, self.prior.dtype, sizes
        generator = torch.Generator().manual_seed(0)
        signs, more = (_signs((SIGNS, size), self.dtype, generator) for size in inputs.shape)
        states = more @ inputs.t()
        sums = widened(torch.cat((signs.new_ones(1, len(inputs)), signs, states)), d_logits, self.wide)
        self.weight_norm, self.column_sums = _norm(sums[-SIGNS:]), sums[0].clone()
        self.signs, self.states = signs.to(self.wide), states.to(self.wide)
        left = torch.cat((self.signs.new_ones(1, len(inputs)), self.signs, self.states))
        of_p = sums.addr_(left @ self.uniform, self.prior)
        self.order = of_p[0].abs().masked_fill_(named, torch.inf).argsort(descending=True, stable=True)
        self.basis = self._basis(d_logits, weight @ _signs((weight.shape[1], DIRECTIONS), self.dtype, generator))
        of_basis = widened(self.basis.t().to(self.dtype).contiguous(), d_logits, self.wide).addr_(
            self.basis.t() @ self.uniform, self.prior
        )
        self.of_p = torch.cat((of_p[1:], of_basis)).index_select(1, self.order)
        self.prior, self.weight = self.prior[self.order], weight
        self._sum_weight()

    def _basis(self, d_logits: Tensor, directions: Tensor) -> Tensor:
        """Return orthonormal columns ``(N, C)`` that hold most of ``T W`` whichever of the classes are left out."""
        directions = torch.cat((directions, directions.new_ones(len(directions), 1)), 1)
        rank = torch.empty_like(self.order).scatter_(0, self.order, torch.arange(len(self.order)))[:, None]
        starts = [int(share * len(rank)) for share in SPANS]
        bands = [(rank >= a) & (rank < b) for a, b in zip(starts, [*starts[1:], len(rank)], strict=True)]
        right = torch.cat([directions * band for band in bands], 1)
        found = torch.empty(d_logits.shape[0], right.shape[1], dtype=self.wide)
        matmul(d_logits, right, found)  # any columns will do: what is rounded here is no error
        found.addr_(self.uniform, self.prior @ right.to(self.wide))
        # Nothing for rows that have nothing: what is ignored gets a gradient of 0.
        return torch.linalg.qr(found).Q.where((found != 0).any(1, keepdim=True), 0.0)

    def _sum_weight(self) -> None:
        """Multiply the sums of rows by the weight, those of the classes left out at each level."""
        rows = torch.cat((self.of_p[:SIGNS], self.of_p[2 * SIGNS :], self.prior[None]))
        ends = [*self.sizes, len(self.weight)]
        bands = torch.empty(len(ends), len(rows), self.weight.shape[1], dtype=self.wide)
        if _has_banded(self.dtype):
            halves = bands.new_empty(len(ends), 2, *bands.shape[1:])
            left = torch.cat(_halves(rows, self.dtype))
            native_linear.banded_matmul(left, self.weight, halves.flatten(1, 2), order=self.order, ends=ends)
            torch.add(halves[:, 0], halves[:, 1], out=bands)
        else:
            weight = self.weight.index_select(0, self.order).to(self.wide)
            for band, first, last in zip(bands, [0, *ends], ends, strict=False):
                torch.mm(rows[:, first:last], weight[first:last], out=band)
        for level in range(len(ends) - 2, -1, -1):
            bands[level] += bands[level + 1]
        self.weight_sums = bands  # from each on to the last: all classes first
        whole = self.weight_sums[0]
        self.input_norm = _norm(whole[:SIGNS] - torch.outer(self.signs @ self.uniform, whole[-1]))

    def error(self, level: int) -> float:
        """Return the larger of the two relative errors."""
        sums, left_out = self.weight_sums[level + 1], self.of_p[:, self.sizes[level] :]
        of_inputs = sums[:SIGNS] - (self.signs @ self.basis) @ sums[SIGNS:-1]
        states, tails = left_out[SIGNS : 2 * SIGNS], left_out[2 * SIGNS :]
        of_weight = torch.addmm(states, self.states @ self.basis, tails, alpha=-1)
        errors = (_norm(of_inputs) / self.input_norm, _norm(of_weight) / self.weight_norm)
        return float(torch.stack(errors).amax())

    def parts(self, level: int) -> Parts:
        """Return what is used of a level."""
        size = self.sizes[level]
        tails = torch.cat((self.of_p[2 * SIGNS :], -self.prior[None]))
        tails[:, :size] = 0
        tails = torch.empty_like(tails).index_copy_(1, self.order, tails)
        sums = self.weight_sums[level + 1]
        shares = torch.cat((self.basis, self.uniform[:, None]), 1)
        kept = self.order[:size].sort().values  # neighbours are gathered faster
        weight_kept = self.weight.index_select(0, kept)
        weight_tails = torch.cat((sums[SIGNS:-1], -sums[-1:]))
        return Parts(kept, weight_kept, shares, tails, weight_tails, self.column_sums)


def _signs(shape: tuple[int, int], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator).mul_(2).sub_(1).to(dtype)


def _norm(matrix: Tensor) -> Tensor:
    return torch.linalg.vector_norm(matrix, dtype=torch.float64)  # the squares of float32 underflow
