"""Which columns of a gradient of logits are kept, and what stands for the others; see `smoothloss.ops.compensated`.

Nothing here is read on the host, so that on a GPU nobody waits.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from smoothloss.backends.common import RowOptions, RowTarget, mass_of, slots_of
from smoothloss.backends.native import linear as native_linear
from smoothloss.ops.linear_layer import can_widen, matmul, widened

SIGNS = 16
# Of the range finder, and from how many of the classes on it looks: the best columns of few are not those of many.
DIRECTIONS, SPANS = 16, (1 / 8, 1 / 4)
# How many of the classes may be kept: each number a fifth more than the one before.
CAPACITIES = tuple(2 ** (step / 4) / 32 for step in range(17))
# Of a basis, relative to the square of its longest column: below this a direction is rounding.
_RIDGE = 1e-12


class Parts(NamedTuple):
    """What stands for the gradient of a chunk's logits: columns that are kept, and a product for the others.

    All but `kept` and `size` are of the accumulator dtype.

    Attributes:
        kept: ``(V,)`` int32, the classes that are kept, ascending, in the first places.
        size: () how many.
        shares: ``(N, C)`` what each row has of each tail.
        tails: ``(C, V)`` the tails, 0 in classes that are kept.
        weight_tails: ``(C, D)``, ``tails @ weight``.
        column_sums: ``(V,)`` of the gradient of the logits.
    """

    kept: Tensor
    size: Tensor
    shares: Tensor
    tails: Tensor
    weight_tails: Tensor
    column_sums: Tensor


def capacities(num_classes: int) -> list[int]:
    """Return the numbers of columns that may be kept of V."""
    return sorted({size for share in CAPACITIES if (size := int(share * num_classes))})


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


class Candidates:
    """What is left out and what stands for it, for each of some numbers of columns.

    The classes are in the order in which they are kept: first those that entries name, then by how much of P they have.
    """

    def __init__(
        self, d_logits: Tensor, inputs: Tensor, weight: Tensor, uniform: tuple[Tensor, Tensor], named: Tensor
    ) -> None:
        """Sum up gradient ``(N, V)``, inputs ``(N, D)`` and weight ``(V, D)``, which are of one dtype."""
        self.uniform, self.prior = uniform
        self.dtype, self.wide, self.weight = d_logits.dtype, self.prior.dtype, weight
        self.sizes, self.num_named = capacities(len(weight)), named.sum()
        signs, more = (_signs(what, size, SIGNS, d_logits) for what, size in enumerate(inputs.shape))
        states = more.t() @ inputs.t()
        sums = widened(torch.cat((signs.new_ones(1, len(inputs)), signs.t(), states)), d_logits, self.wide)
        self.weight_norm, self.column_sums = _norm(sums[-SIGNS:]), sums[0].clone()
        self.signs, self.states = signs.t().to(self.wide), states.to(self.wide)
        left = torch.cat((self.signs.new_ones(1, len(inputs)), self.signs, self.states))
        of_p = sums.addr_(left @ self.uniform, self.prior)
        self.order = of_p[0].abs().masked_fill_(named, torch.inf).argsort(descending=True, stable=True)
        self.place = torch.arange(len(weight), device=weight.device)
        self.rank = torch.empty_like(self.order).scatter_(0, self.order, self.place)
        self.basis = self._basis(d_logits)
        of_basis = widened(self.basis.t().to(self.dtype).contiguous(), d_logits, self.wide).addr_(
            self.basis.t() @ self.uniform, self.prior
        )
        self.of_p = torch.cat((of_p[1:], of_basis)).index_select(1, self.order)
        self.prior = self.prior[self.order]
        self._sum_weight()

    def _basis(self, d_logits: Tensor) -> Tensor:
        """Return orthonormal columns ``(N, C)`` that hold most of ``T W`` whichever of the classes are left out."""
        directions = self.weight @ _signs(2, self.weight.shape[1], DIRECTIONS, self.weight)
        directions = torch.cat((directions, directions.new_ones(len(directions), 1)), 1)
        starts, rank = [int(share * len(self.rank)) for share in SPANS], self.rank[:, None]
        bands = [(rank >= a) & (rank < b) for a, b in zip(starts, [*starts[1:], len(rank)], strict=True)]
        right = torch.cat([directions * band for band in bands], 1)
        found = self.signs.new_empty(d_logits.shape[0], right.shape[1])
        matmul(d_logits, right, found)  # any columns will do: what is rounded here is no error
        return _orthonormal(found.addr_(self.uniform, self.prior @ right.to(self.wide)))

    def _sum_weight(self) -> None:
        """Multiply the sums of rows by the weight, those of the classes left out at each level."""
        rows = torch.cat((self.of_p[:SIGNS], self.of_p[2 * SIGNS :], self.prior[None]))
        ends = [*self.sizes, len(self.weight)]
        # From each number of columns on to the last class: all classes first, none last.
        sums = rows.new_zeros(len(ends) + 1, len(rows), self.weight.shape[1])
        device = self.weight.device.type
        is_banded = native_linear.has_widening_matmul(device, self.dtype)
        is_halved = self.dtype != self.wide and (is_banded or can_widen(device))
        left = torch.cat(in_halves(rows, self.dtype)) if is_halved else rows
        bands = sums.new_empty(len(ends), len(left), sums.shape[2]) if is_halved else sums[:-1]
        if is_banded:
            native_linear.banded_matmul(left, self.weight, bands, order=self.order, ends=ends)
        else:
            for band, first, last in zip(bands, [0, *ends], ends, strict=False):
                matmul(left[:, first:last], self.weight.index_select(0, self.order[first:last]).to(left.dtype), band)
        if is_halved:
            torch.add(bands[:, : len(rows)], bands[:, len(rows) :], out=sums[:-1])
        for level in range(len(ends) - 2, -1, -1):
            sums[level] += sums[level + 1]
        self.weight_sums = sums
        self.input_norm = _norm(sums[0, :SIGNS] - torch.outer(self.signs @ self.uniform, sums[0, -1]))

    def errors(self) -> Tensor:
        """Return the larger of the two relative errors for each number of columns, float64."""
        mixed = self.signs @ self.basis
        of_inputs = self.weight_sums[1:-1, :SIGNS] - mixed @ self.weight_sums[1:-1, SIGNS:-1]
        of_inputs = torch.linalg.vector_norm(of_inputs, dim=(1, 2), dtype=torch.float64)
        states, tails = self.of_p[SIGNS : 2 * SIGNS], self.of_p[2 * SIGNS :]
        of_weight = torch.addmm(states, self.states @ self.basis, tails, alpha=-1)
        squares = torch.linalg.vector_norm(of_weight, dim=0, dtype=torch.float64).square()
        is_left_out = self.place >= self._sizes()[:-1, None]
        of_weight = squares.where(is_left_out, 0.0).sum(1).sqrt()
        return torch.maximum(of_inputs / self.input_norm, of_weight / self.weight_norm)

    def parts(self, tolerance: float) -> Parts:
        """Return what keeps the fewest columns whose error is within the tolerance; all where none of them does."""
        sizes = self._sizes()
        levels = torch.arange(len(sizes), device=sizes.device)
        is_enough = (self.errors() <= tolerance) & (sizes[:-1] >= self.num_named)  # false of nan
        level = levels[:-1].where(is_enough, len(self.sizes)).amin().view(1)
        size = sizes[level]
        is_kept = self.rank < size
        kept = self.order.new_zeros(len(self.rank) + 1, dtype=torch.int32)
        kept.scatter_(0, (is_kept.cumsum(0) - 1).where(is_kept, len(self.rank)), self.place.int())
        # Where all are kept nothing is put back, not even what is not finite.
        shares = torch.cat((self.basis, self.uniform[:, None]), 1).masked_fill_(size == len(self.rank), 0.0)
        tails = torch.cat((self.of_p[2 * SIGNS :], -self.prior[None])).masked_fill_(self.place < size, 0.0)
        sums = self.weight_sums.index_select(0, level + 1)[0]
        return Parts(
            kept[:-1],
            size[0],
            shares,
            torch.empty_like(tails).index_copy_(1, self.order, tails),
            torch.cat((sums[SIGNS:-1], -sums[-1:])),
            self.column_sums,
        )

    def _sizes(self) -> Tensor:
        """Return the numbers of columns, and that of all classes."""
        return _numbers((*self.sizes, len(self.weight)), self.weight.device)


def in_halves(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return two matrices of a dtype of 16 bits whose sum is `values`, but for what both leave."""
    high = values.to(dtype)
    return high, (values - high).to(dtype)


def wide_product(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a @ b`` in the dtype of a, whose b may be of 16 bits."""
    if a.dtype == b.dtype:
        return a @ b
    return widened(torch.cat(in_halves(a, b.dtype)), b, a.dtype).view(2, a.shape[0], b.shape[1]).sum(0)


def _orthonormal(columns: Tensor) -> Tensor:
    """Return orthonormal columns that span what those of ``(N, C)`` do, but for what is lost in their rounding.

    By the Cholesky factor of their products, in float64, where a matrix of few columns has digits to spare: QR waits
    for its device. Rows of zeros stay so, as what is ignored must have a gradient of 0.
    """
    wide = columns.double()
    wide = wide / torch.linalg.vector_norm(wide, dim=0).clamp(min=torch.finfo(wide.dtype).tiny)
    gram = wide.t() @ wide
    gram.diagonal().add_(_RIDGE * len(gram))
    factor = torch.linalg.cholesky_ex(gram).L
    return torch.linalg.solve_triangular(factor.t(), wide, upper=True, left=False).to(columns.dtype)


def _signs(seed: int, size: int, count: int, like: Tensor) -> Tensor:
    """Return random signs ``(size, count)`` on the device and in the dtype of `like`, the same every time."""
    room = 1 << max(size - 1, 1).bit_length()
    return _drawn_signs(seed, room, count, like.dtype, like.device)[:size]


@functools.lru_cache(maxsize=64)
def _drawn_signs(seed: int, size: int, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    # Kept, and drawn on the CPU: what is captured into a CUDA graph can neither be copied there nor draw without taking
    # part in the user's random numbers.
    generator = torch.Generator("cpu").manual_seed(seed)
    signs = torch.randint(0, 2, (size, count), generator=generator, device="cpu", dtype=torch.int8)
    return signs.mul_(2).sub_(1).to(device, dtype)


@functools.lru_cache(maxsize=64)
def _numbers(values: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device)


def _norm(matrix: Tensor) -> Tensor:
    return torch.linalg.vector_norm(matrix, dtype=torch.float64)  # the squares of float32 underflow
