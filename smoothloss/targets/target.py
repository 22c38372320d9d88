"""A target as a value: what it holds, how it mixes, and what can be asked of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from smoothloss._prior import check_prior, fitted_prior
from smoothloss._validation import check_integer, check_number
from smoothloss.backends.common import (
    Candidates,
    DenseRows,
    OutOfRange,
    TableRows,
    merge_equal,
    replaced,
    without_autocast,
)
from smoothloss.ops.checks import check_index_values
from smoothloss.ops.similarity_rows import SimilarityMixture
from smoothloss.ops.smoothed_target import smoothed_target
from smoothloss.ops.target import FlatTarget, scaled

LARGEST = torch.iinfo(torch.int32).max


class Given(NamedTuple):
    """A tensor of class numbers that a target was made of, for the error that names one out of range."""

    name: str
    tensor: Tensor
    ignore_index: int | None


class Counted(NamedTuple):
    """The positions ``(B, T)`` over which "mean" averages, where each is that of a ground truth and of its samples.

    Not on how long the samples of a ground truth are: a divisor that is drawn would bias the mean.

    Args:
        own: Those of the ground truth.
        others: Those of its samples, which count in sentences that have none of the ground truth.
    """

    own: Tensor
    others: Tensor

    def positions(self) -> Tensor:
        """Return those that count."""
        return torch.where(self.own.any(-1, keepdim=True), self.own, self.others)


class Target:
    """What every position is to predict: weights of classes, and mass that lies evenly on all of them.

    Targets are made by the functions of this module and mix: ``0.5 * a + 0.5 * b`` has the entries of both side by
    side, and their masses add up. They are constants for the gradient.

    Attributes:
        shape: that of the positions, ``(...)``.
        flat: the same target with one row for each position, as the operators take it.
        num_classes: V where the target knows it (from a table), else None.
    """

    def __init__(
        self, shape: torch.Size, flat: FlatTarget, given: tuple[Given, ...] = (), num_classes: int | None = None,
        counted: Counted | None = None,
    ) -> None:  # fmt: skip
        """Hold what a constructor has checked."""
        self.shape, self.flat, self.num_classes, self._counted = shape, flat, num_classes, counted
        self._given = given

    @property
    def counted(self) -> Tensor | None:
        """Positions over which "mean" averages, ``(B, T)`` of ``(L + 1, B, T)``; None: those whose mass is not 0."""
        return None if self._counted is None else self._counted.positions()

    @property
    def device(self) -> torch.device:
        """Where the target is."""
        return self.flat.indices.device

    @property
    def indices(self) -> Tensor:
        """Classes ``(..., S)``; negative: an empty slot. A class may repeat, its weights add up."""
        flat = self._entries()
        return flat.indices.reshape(*self.shape, flat.indices.shape[-1])

    @property
    def weights(self) -> Tensor:
        """Weights of `indices`, ``(..., S)``."""
        flat = self._entries()
        assert flat.weights is not None
        return flat.weights.reshape(*self.shape, flat.weights.shape[-1])

    @property
    def uniform(self) -> Tensor | None:
        """Mass that lies evenly on all classes, ``(...)``, or None."""
        return None if self.flat.uniform is None else self.flat.uniform.reshape(self.shape)

    def mass(self) -> Tensor:
        """Return the total mass of each position, ``(...)``: 0 where it is ignored."""
        flat = self._entries()
        return flat.mass(LARGEST, _float_dtype(flat)).reshape(self.shape)

    def dense(self, num_classes: int) -> Tensor:
        """Return the target as a dense one, ``(..., V)``.

        Raises:
            ValueError: the target is one over another number of classes.
            IndexError: it has a class that is not among them, where values may be asked for.
        """
        num_classes = self._checked(num_classes)
        return self._dense(self._entries(), num_classes).reshape(*self.shape, num_classes)

    def entropy(self, num_classes: int, *, label_smoothing: float = 0.0, prior: Tensor | None = None) -> Tensor:
        """Return ``-sum_v q_v log q_v`` of each position's target q, ``(...)``.

        Args:
            num_classes: V.
            label_smoothing: eps, applied to the target first.
            prior: ``(V,)`` what the mass that lies on all classes is spread by; None: evenly.

        Raises:
            TypeError, ValueError: an argument of the wrong type, shape or range.
            IndexError: as :meth:`dense`.
        """
        flat, eps = self._entries(), check_number(label_smoothing, "label_smoothing", 0.0, 1.0)
        num_classes = self._checked(num_classes)
        if prior is not None:
            assert flat.weights is not None
            prior = fitted_prior(check_prior(prior), flat.weights, num_classes)
        return -negative_entropy(flat, num_classes, eps, prior).reshape(self.shape)

    def to(self, device: torch.device | str) -> Target:
        """Return the same target on another device."""
        indices, weights, uniform, ignore_index, source, prior = self.flat

        def moved(tensor: Tensor | None) -> Any:
            return None if tensor is None else tensor.to(device)

        if source is not None:
            parts: dict[str, Any] = {
                name: value.to(device) for name, value in source._asdict().items() if isinstance(value, Tensor)
            }
            source = source._replace(**parts)
        flat = FlatTarget(moved(indices), moved(weights), moved(uniform), ignore_index, source, moved(prior))
        counted = None if self._counted is None else Counted(*map(moved, self._counted))
        return Target(self.shape, flat, (), self.num_classes, counted)

    def __mul__(self, factor: float) -> Target:
        """Return the target with all its mass times a number."""
        factor = check_number(factor, "factor")
        flat = self._entries()
        assert flat.weights is not None
        source = scaled(flat.source, factor)
        uniform = None if flat.uniform is None else flat.uniform * factor
        flat = replaced(FlatTarget, flat, weights=flat.weights * factor, uniform=uniform, source=source)
        counted = None if self._counted is None else Counted(*(each & (factor != 0) for each in self._counted))
        return Target(self.shape, flat, self._given, self.num_classes, counted)

    __rmul__ = __mul__

    def __add__(self, other: Target) -> Target:
        """Return the target that has the entries of both, side by side.

        Raises:
            ValueError: their shapes, devices or numbers of classes differ, or both have dense rows of their own.
        """
        if not isinstance(other, Target):
            return NotImplemented
        if self.shape != other.shape:
            raise ValueError(f"target: got shapes {tuple(self.shape)} and {tuple(other.shape)}, expected the same")
        if self.device != other.device:
            raise ValueError(f"target: got targets on {self.device} and {other.device}, expected one device")
        if None not in (self.num_classes, other.num_classes) and self.num_classes != other.num_classes:
            raise ValueError(
                f"target: got targets over {self.num_classes} and {other.num_classes} classes, expected the same"
            )
        num_classes = self.num_classes if other.num_classes is None else other.num_classes
        counted = None
        if self._counted is not None or other._counted is not None:
            pairs = zip(self._counted_together(), other._counted_together(), strict=True)
            counted = Counted(*(one | another for one, another in pairs))
        flat = _joined(self._entries(), other._entries())
        return Target(self.shape, flat, self._given + other._given, num_classes, counted)

    def _counted_together(self) -> Counted:
        """Return the positions that count where each is that of several sequences, the first the ground truth."""
        if self._counted is not None:
            return self._counted
        present = self.mass() != 0
        return Counted(present[0], present[1:].any(0))

    def __repr__(self) -> str:
        slots = 1 if self.flat.weights is None else self.flat.weights.shape[-1]
        classes = "" if self.num_classes is None else f", num_classes={self.num_classes}"
        return f"Target(shape={tuple(self.shape)}, slots={slots}{classes}, device={str(self.device)!r})"

    def check_values(self, num_classes: int) -> None:
        """Raise IndexError on the first class number out of range, where values may be asked for."""
        for name, tensor, ignore_index in self._given:
            check_index_values(tensor, num_classes, name, ignore=ignore_index)

    def _entries(self) -> FlatTarget:
        """Return the flat target with class numbers written as entries."""
        flat = self.flat
        if flat.weights is not None:
            return flat
        assert flat.ignore_index is not None
        candidates = Candidates(flat.indices.reshape(1, -1), ignore_index=flat.ignore_index)
        indices, weights, _ = build(candidates, None, 0.0, self._given, "auto")
        return FlatTarget(indices, weights)

    def _checked(self, num_classes: int) -> int:
        num_classes = check_integer(num_classes, "num_classes", 1)
        if self.num_classes not in (None, num_classes):
            raise ValueError(f"num_classes: got {num_classes}, expected {self.num_classes}, those of the target")
        self.check_values(num_classes)
        return num_classes

    @staticmethod
    def _dense(flat: FlatTarget, num_classes: int) -> Tensor:
        rows = flat.rows(_float_dtype(flat))
        assert rows.weights is not None
        filled = (rows.indices >= 0) & (rows.indices < num_classes)
        dense = rows.weights.new_zeros(rows.indices.shape[0], num_classes)
        dense = dense.scatter_add(1, rows.indices.where(filled, 0).long(), rows.weights.where(filled, 0.0))
        if rows.uniform is not None:
            dense = dense + rows.uniform.unsqueeze(-1) / num_classes
        return dense if rows.dense is None else dense + _mixture(rows.dense)


def build(
    candidates: Candidates, table: TableRows | None, token_alpha: float, given: tuple[Given, ...], impl: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return indices, weights and uniform mass of candidates, one row a position.

    Raises:
        IndexError: naming the first class number of `given` that is out of range.
    """
    try:
        return smoothed_target(candidates, table, token_alpha, impl)
    except OutOfRange:
        for name, tensor, ignore_index in given:
            check_index_values(tensor, LARGEST, name, "classes at most", ignore_index)
        raise


def _joined(a: FlatTarget, b: FlatTarget) -> FlatTarget:
    """Return the entries of both side by side."""
    assert a.weights is not None and b.weights is not None
    dtype = torch.promote_types(a.weights.dtype, b.weights.dtype)
    index = torch.promote_types(a.indices.dtype, b.indices.dtype)
    masses = [mass for mass in (a.uniform, b.uniform) if mass is not None]
    return FlatTarget(
        torch.cat((a.indices.to(index), b.indices.to(index)), -1),
        torch.cat((a.weights.to(dtype), b.weights.to(dtype)), -1),
        sum(masses[1:], masses[0]) if masses else None,
        None,
        _joined_sources(a.source, b.source),
    )


def _joined_sources(
    a: SimilarityMixture | DenseRows | None, b: SimilarityMixture | DenseRows | None
) -> SimilarityMixture | DenseRows | None:
    if a is None or b is None:
        return b if a is None else a
    if not (isinstance(a, SimilarityMixture) and isinstance(b, SimilarityMixture) and a.has_the_factors_of(b)):
        raise ValueError("target: got two tables with exact tails, expected one table, or tails of another kind")
    tokens, weights = torch.cat((a.tokens, b.tokens), -1), torch.cat((a.weights, b.weights), -1)
    return replaced(SimilarityMixture, a, tokens=tokens, weights=weights)


def _float_dtype(flat: FlatTarget) -> torch.dtype:
    return torch.float32 if flat.weights is None else flat.weights.dtype


def _mixture(dense: DenseRows) -> Tensor:
    """Return ``sum_j weights[n, j] values[rows[n, j]]``, ``(N, V)``."""
    filled = (dense.rows >= 0) & (dense.rows < dense.values.shape[0])
    shares = dense.weights.new_zeros(dense.rows.shape[0], dense.values.shape[0])
    shares = shares.scatter_add(1, dense.rows.where(filled, 0).long(), dense.weights.where(filled, 0.0))
    with without_autocast(shares.device.type):
        return shares @ dense.values


def negative_entropy(flat: FlatTarget, num_classes: int, label_smoothing: float, prior: Tensor | None) -> Tensor:
    """Return ``sum_v q_v log q_v`` of every row's target q: what turns cross-entropy into KL. All has been checked."""
    assert flat.weights is not None
    mass = flat.mass(num_classes, _float_dtype(flat))
    uniform = torch.zeros_like(mass) if flat.uniform is None else flat.uniform
    spread = ((1 - label_smoothing) * uniform + label_smoothing * mass).unsqueeze(-1)
    if flat.source is not None:
        share = 1 / num_classes if prior is None else prior.to(mass.dtype)
        own = Target._dense(replaced(FlatTarget, flat, uniform=None), num_classes)
        dense = (1 - label_smoothing) * own + spread * share
        return torch.xlogy(dense, dense).sum(-1)
    indices = flat.indices.where(flat.indices < num_classes, -1)
    indices, weights = merge_equal(indices, flat.weights)
    if prior is not None:
        return _negative_entropy_over(prior.to(mass.dtype), spread, indices, (1 - label_smoothing) * weights)
    floor = spread / num_classes
    own = (1 - label_smoothing) * weights + floor
    filled = indices >= 0
    inside = torch.xlogy(own, own).where(filled, 0.0).sum(-1)
    rest = num_classes - filled.sum(-1)
    return inside + rest * torch.xlogy(floor, floor).squeeze(-1)


def _negative_entropy_over(prior: Tensor, spread: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """Return ``sum_v q_v log q_v``, q made of distinct entries ``(N, S)`` and mass ``(N, 1)`` spread by a prior."""
    filled = indices >= 0
    floor = spread * prior[indices.where(filled, 0).long()]
    own = floor + weights
    inside = (torch.xlogy(own, own) - torch.xlogy(floor, floor)).where(filled, 0.0).sum(-1)
    total = prior.sum()
    return inside + (torch.xlogy(spread, spread) * total + spread * torch.xlogy(prior, prior).sum()).squeeze(-1)
