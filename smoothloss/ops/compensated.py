"""The products of the gradients from the classes that bfloat16 can see, with the mean of all others put back.

``dX = G W`` and ``dW = G' X`` multiply every column of the gradient G of a chunk's logits, though most classes are
improbable in each of its rows. ``G = P - U - Q``: multiples of p, the mass that lies on all classes, and the target's
entries. U is a product of rank one and is multiplied as one. Columns with entries are kept, and those with the most of
P. Of T, what is left of P, stay the sum a of each row and, over each cluster of rows with like hidden states, the sum s
of each column: ``a s' / sum(s)`` stands for it, a product of as small a rank as there are clusters.

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
from smoothloss.ops.linear_layer import GradientSums, LinearLayer, addmm, matmul
from smoothloss.ops.target import FlatTarget

# The relative error of rounding to bfloat16: half a unit of the last of 8 bits, uniform, over mantissas whose logarithm
# is.
ROUNDING = 2**-8 * (0.541 / 3) ** 0.5
LEAST_ROWS = 256  # fewer are not worth the sums
CLUSTERS, SIGNS = 32, 16
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
        """Add to the bias's gradient alone: the hidden states' waits for the chunk."""
        self.add_bias(d_logits)

    def add_chunk(self, rows: slice | None, d_logits: Tensor) -> None:
        """Add to the gradients of hidden states and weight."""
        parts = self._parts(rows, d_logits)
        self.columns_kept.append(self.layer.num_classes if parts is None else len(parts.kept))
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
    # Numbers of 16 bits and what they leave: what is put back may cancel against what is kept.
    shares, rest = _halves(parts.shares, compact.dtype)
    tails, rest_of_tails = _halves(parts.weight_tails, compact.dtype)
    left = torch.cat((compact, shares, shares, rest), 1)
    matmul(left, torch.cat((parts.weight_kept, tails, rest_of_tails, tails)), out)


def _halves(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    high = values.to(dtype)
    return high, (values - high).to(dtype)


class Parts(NamedTuple):
    """What stands for the gradient of a chunk's logits: columns that are kept, and a product for the others.

    All but `kept` and `weight_kept` are of the accumulator dtype.

    Attributes:
        kept: ``(K,)`` the classes that are kept.
        weight_kept: ``(K, D)``, their rows of the weight.
        shares: ``(N, C)`` what each row has of each tail.
        tails: ``(C, V)`` the tails, 0 in classes that are kept.
        weight_tails: ``(C, D)``, ``tails @ weight``.
    """

    kept: Tensor
    weight_kept: Tensor
    shares: Tensor
    tails: Tensor
    weight_tails: Tensor


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


def clusters(inputs: Tensor, count: int) -> Tensor:
    """Return which of `count` clusters each row is in, ``(C, N)`` zeros and ones: that of the nearest of C rows."""
    pivots = inputs[torch.arange(count, device=inputs.device) * len(inputs) // count]
    nearest = (inputs @ pivots.t()).float().sub_(pivots.float().square().sum(-1) / 2).argmax(-1)
    return inputs.new_zeros(count, len(inputs)).scatter_(0, nearest[None], 1.0)


class _Candidates:
    """What is left out and what stands for it, for each of some numbers of columns; see the module.

    The classes are in the order in which they are kept: first those that entries name, then by how much of P they have.
    """

    def __init__(
        self, d_logits: Tensor, inputs: Tensor, weight: Tensor, uniform: tuple[Tensor, Tensor], named: Tensor,
        sizes: list[int],
    ) -> None:  # fmt: skip
        """Sum up gradient ``(N, V)``, inputs ``(N, D)`` and weight ``(V, D)``, which are of one dtype."""
        self.uniform, prior = uniform
        self.dtype, self.wide, self.sizes = d_logits.dtype, prior.dtype, sizes
        generator = torch.Generator().manual_seed(0)
        signs, more = (_signs((SIGNS, size), self.dtype, generator) for size in inputs.shape)
        left = torch.cat((clusters(inputs, CLUSTERS), signs, more @ inputs.t()))
        self.members, self.signs, self.states = left.to(self.wide).split((CLUSTERS, SIGNS, SIGNS))
        sums = self._product(left, d_logits)
        self.weight_norm = _norm(sums[-SIGNS:])
        of_p = sums.addr_(left.to(self.wide) @ self.uniform, prior)
        most = of_p[:CLUSTERS].square().div_(self.members.sum(1, keepdim=True).clamp_(min=1)).sum(0)
        self.order = most.masked_fill_(named, torch.inf).argsort(descending=True, stable=True)
        self.prior, self.of_p = prior[self.order], of_p.index_select(1, self.order)
        self._sum_rows(d_logits)
        self.weight = weight.index_select(0, self.order).to(self.wide)
        self._sum_weight()

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        out = torch.empty(a.shape[0], b.shape[1], dtype=self.wide)
        matmul(a, b, out)
        return out

    def _sum_rows(self, d_logits: Tensor) -> None:
        """Sum each row's P over the classes left out at each level: ``a (N, L)``."""
        rank = torch.empty_like(self.order).scatter_(0, self.order, torch.arange(len(self.order)))
        left_out = rank[:, None] >= torch.tensor(self.sizes)
        self.mass = self._product(d_logits, left_out.to(self.dtype))
        self.mass.addr_(self.uniform, torch.stack([self.prior[size:].sum() for size in self.sizes]))

    def _sum_weight(self) -> None:
        """Multiply the sums of rows by the weight, those of the classes left out at each level."""
        rows = torch.cat((self.of_p[:-SIGNS], self.prior[None]))
        ends = [*self.sizes, len(self.weight)]
        bands = [rows[:, a:b] @ self.weight[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        self.weight_sums = torch.stack(bands).flip(0).cumsum(0).flip(0)  # all classes first
        whole = self.weight_sums[0]
        self.input_norm = _norm(whole[CLUSTERS:-1] - torch.outer(self.signs @ self.uniform, whole[-1]))

    def _shares(self, level: int) -> Tensor:
        """Return each row's part of the sums of its cluster, ``(N, C)``."""
        mass = self.mass[:, level]
        # Sizes, lest what cancels be divided by: softcaps and z-losses give rows and classes signs of their own.
        total = self.members.t() @ (self.members @ mass.abs())
        return self.members.t() * (mass / total).where(total != 0, 0.0)[:, None]

    def error(self, level: int) -> float:
        """Return the larger of the two relative errors."""
        size, shares, sums = self.sizes[level], self._shares(level), self.weight_sums[level + 1]
        of_inputs = sums[CLUSTERS:-1] - (self.signs @ shares) @ sums[:CLUSTERS]
        tails, states = self.of_p[:CLUSTERS, size:], self.of_p[-SIGNS:, size:]
        of_weight = torch.addmm(states, self.states @ shares, tails, alpha=-1)
        errors = (_norm(of_inputs) / self.input_norm, _norm(of_weight) / self.weight_norm)
        return float(torch.stack(errors).amax())

    def parts(self, level: int) -> Parts:
        """Return what is used of a level."""
        size = self.sizes[level]
        kept = self.order[:size]
        tails = torch.cat((self.of_p[:CLUSTERS], -self.prior[None]))
        tails[:, :size] = 0
        tails = torch.empty_like(tails).index_copy_(1, self.order, tails)
        sums = self.weight_sums[level + 1]
        shares = torch.cat((self._shares(level), self.uniform[:, None]), 1)
        weight_kept = self.weight[:size].to(self.dtype)
        return Parts(kept, weight_kept, shares, tails, torch.cat((sums[:CLUSTERS], -sums[-1:])))


def _signs(shape: tuple[int, int], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator).mul_(2).sub_(1).to(dtype)


def _norm(matrix: Tensor) -> Tensor:
    return torch.linalg.vector_norm(matrix, dtype=torch.float64)  # the squares of float32 underflow
