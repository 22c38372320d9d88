"""What a loss wants each position to predict, as a value: constructors, mixing, and what can be asked of it.

A new loss is a new target. ``F.cross_entropy(input, target)`` takes class numbers, or a `Target`::

    from smoothloss import targets

    target = 0.5 * targets.labels(y) + 0.5 * targets.top_k(indices, log_probs)

Source of the equations: Elbayad, Besacier, Verbeek, ACL 2018 (arXiv 1805.05062).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from smoothloss._numbers import as_integer
from smoothloss._validation import (
    check_choice,
    check_constant,
    check_device,
    check_local,
    check_number,
    check_shape,
    check_tensor,
)
from smoothloss.backends import Implementation
from smoothloss.backends.common import Candidates, DenseRows, OutOfRange, TableRows, merge_equal, without_autocast
from smoothloss.ops.checks import check_index_values
from smoothloss.ops.similarity_rows import SimilarityMixture
from smoothloss.ops.smoothed_target import smoothed_target
from smoothloss.ops.target import FlatTarget
from smoothloss.similarity import SimilarityTable

__all__ = ["Target", "entries", "labels", "lazy_sequence", "sequence", "token", "top_k"]

Missing = Literal["uniform", "renormalize", "drop"]
_LARGEST = torch.iinfo(torch.int32).max


class Given(NamedTuple):
    """A tensor of class numbers that a target was made of, for the error that names one out of range."""

    name: str
    tensor: Tensor
    ignore_index: int | None


class Target:
    """What every position is to predict: weights of classes, and mass that lies evenly on all of them.

    Targets are made by the functions of this module and mix: ``0.5 * a + 0.5 * b`` has the entries of both side by
    side, and their masses add up. They are constants for the gradient.

    Attributes:
        shape: that of the positions, ``(...)``.
        flat: the same target with one row for each position, as the operators take it.
        num_classes: V where the target knows it (from a table), else None.
        counted: ``(...)`` positions over which "mean" averages; None: those whose mass is not 0.
    """

    def __init__(
        self, shape: torch.Size, flat: FlatTarget, given: tuple[Given, ...] = (), num_classes: int | None = None,
        counted: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Hold what a constructor has checked."""
        self.shape, self.flat, self.num_classes, self.counted = shape, flat, num_classes, counted
        self._given = given

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
        return flat.mass(_LARGEST, _float_dtype(flat)).reshape(self.shape)

    def dense(self, num_classes: int) -> Tensor:
        """Return the target as a dense one, ``(..., V)``.

        Raises:
            ValueError: the target is one over another number of classes.
        """
        return self._dense(self._entries(), self._checked(num_classes)).reshape(*self.shape, num_classes)

    def entropy(self, num_classes: int, *, label_smoothing: float = 0.0) -> Tensor:
        """Return ``-sum_v q_v log q_v`` of each position's target q, ``(...)``.

        Args:
            num_classes: V.
            label_smoothing: eps, applied to the target first.
        """
        flat, eps = self._entries(), check_number(label_smoothing, "label_smoothing", 0.0, 1.0)
        negative = _negative_entropy(flat, self._checked(num_classes), eps)
        return -negative.reshape(self.shape)

    def to(self, device: torch.device | str) -> Target:
        """Return the same target on another device."""
        indices, weights, uniform, ignore_index, source = self.flat

        def moved(tensor: Tensor | None) -> Any:
            return None if tensor is None else tensor.to(device)

        if source is not None:
            parts: dict[str, Any] = {
                name: value.to(device) for name, value in source._asdict().items() if isinstance(value, Tensor)
            }
            source = source._replace(**parts)
        flat = FlatTarget(moved(indices), moved(weights), moved(uniform), ignore_index, source)
        return Target(self.shape, flat, (), self.num_classes, moved(self.counted))

    def __mul__(self, factor: float) -> Target:
        """Return the target with all its mass times a number."""
        factor = check_number(factor, "factor")
        flat = self._entries()
        assert flat.weights is not None
        source = flat.source and flat.source._replace(weights=flat.source.weights * factor)
        uniform = None if flat.uniform is None else flat.uniform * factor
        flat = flat._replace(weights=flat.weights * factor, uniform=uniform, source=source)
        return Target(self.shape, flat, self._given, self.num_classes, self.counted)

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
        counted = self.counted if other.counted is None else other.counted
        flat = _joined(self._entries(), other._entries())
        return Target(self.shape, flat, self._given + other._given, num_classes, counted)

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
        indices, weights, _ = _built(candidates, None, 0.0, self._given, "auto")
        return FlatTarget(indices, weights)

    def _checked(self, num_classes: int) -> int:
        num_classes = as_integer(num_classes, "num_classes", 1)
        if self.num_classes not in (None, num_classes):
            raise ValueError(f"num_classes: got {num_classes}, expected {self.num_classes}, those of the target")
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


def labels(y: Tensor, *, ignore_index: int = -100) -> Target:
    """Return ``delta(y)``: class numbers, the target of maximum likelihood.

    Args:
        y: ``(...)`` int64 or int32 class numbers.
        ignore_index: positions with this class number have no mass.

    Raises:
        TypeError: `y` is no integer tensor, `ignore_index` no integer.

    Source: Eq. 4-7.
    """
    check_tensor(y, "target", floating=False)
    ignore_index = as_integer(ignore_index, "ignore_index")
    flat = FlatTarget(y if y.dim() == 1 else y.reshape(-1), ignore_index=ignore_index)
    return Target(y.shape, flat, (Given("target", y, ignore_index),))


def token(
    y: Tensor,
    table: SimilarityTable | None = None,
    alpha: float = 0.0,
    *,
    ignore_index: int = -100,
    impl: Implementation = "auto",
) -> Target:
    """Return ``(1 - alpha) delta(y*_t) + alpha R_{y*_t}`` (Tok, Eq. 13 and 16); without a table ``delta(y*_t)`` (MLE).

    Args:
        y: ``(...)`` ground truth.
        table: similarity rows, or None; its ``tail`` says what becomes of the mass beyond a row's K entries.
        alpha: the paper's alpha, share of the similarity row, in [0, 1].
        ignore_index: positions with this class number have no mass.
        impl: which implementation builds it.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: `alpha` out of its range, or above 0 without a table.
    """
    alpha = check_number(alpha, "alpha", 0.0, 1.0)
    if table is None or not alpha:
        _check_table(table, alpha, "alpha", y)
        return _of_table(labels(y, ignore_index=ignore_index), table)
    check_tensor(y, "target", floating=False)
    _check_table(table, alpha, "alpha", y)
    ignore_index = as_integer(ignore_index, "ignore_index")
    candidates = Candidates(y.reshape(1, -1).contiguous(), ignore_index=ignore_index)
    given = (Given("target", y, ignore_index),)
    return Target(y.shape, _smoothed(candidates, table, alpha, given, impl), given, table.num_tokens)


def lazy_sequence(
    y: Tensor,
    samples: Tensor,
    sample_weights: Tensor | None = None,
    *,
    alpha: float,
    table: SimilarityTable | None = None,
    token_alpha: float = 0.0,
    ignore_index: int = -100,
    impl: Implementation = "auto",
) -> Target:
    """Return ``(1 - alpha) delta(y*_t) + alpha sum_l omega_l delta(y^l_t)``, all for the one forward on y* (Eq. 19).

    With a table every delta is smoothed in turn: ``(1 - token_alpha) delta(y) + token_alpha R_y`` (Eq. 17). Equal
    tokens are merged first; most samples repeat the ground truth in most positions.

    Args:
        y: ``(B, T)`` ground truth y*.
        samples: ``(L, B, T)`` sampled sequences; disregarded where `y` is `ignore_index`.
        sample_weights: ``(L, B)`` importance weights omega, constant for the gradient, or None for 1/L.
        alpha: share of the samples, in [0, 1].
        table: similarity rows, or None.
        token_alpha: the paper's alpha_2, in [0, 1].
        ignore_index: positions with this class number have no mass.
        impl: which implementation builds it.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape or range.
    """
    alpha, token_alpha, ignore_index = _check_smoothing(y, alpha, table, token_alpha, ignore_index)
    samples = _check_samples(y, samples, sample_weights)
    if samples.shape[0] == 0:
        return token(y, table, token_alpha, ignore_index=ignore_index, impl=impl) * (1 - alpha)
    omega = None if sample_weights is None else sample_weights.detach().float().contiguous()
    candidates = Candidates(y.contiguous(), samples.contiguous(), None, omega, alpha, ignore_index)
    given = (Given("target", y, ignore_index), Given("samples", samples, ignore_index))
    flat = _smoothed(candidates, table, token_alpha, given, impl)
    return _of_table(Target(y.shape, flat, given), table)


def sequence(
    y: Tensor,
    samples: Tensor,
    sample_weights: Tensor | None = None,
    *,
    alpha: float,
    table: SimilarityTable | None = None,
    token_alpha: float = 0.0,
    ignore_index: int = -100,
    impl: Implementation = "auto",
) -> Target:
    """Return the targets of the exact sequence loss, ``(L + 1, B, T)``: each sequence on its own states (Eq. 9-12, 15).

    The first is ``(1 - alpha) delta(y*_t)``, the others ``alpha omega_l delta(y^l_t)``; with a table every delta is
    smoothed as in `lazy_sequence`. Positions where a sequence itself is `ignore_index` have no mass. "mean" averages
    over the ground truth's positions, so that it compares with MLE and the lazy loss.

    Args: as `lazy_sequence`; samples may be longer or shorter than the ground truth when padded with `ignore_index` to
    the same width T.
    """
    alpha, token_alpha, ignore_index = _check_smoothing(y, alpha, table, token_alpha, ignore_index)
    samples = _check_samples(y, samples, sample_weights)
    count, batch, length = samples.shape
    omega = sample_weights
    if omega is None:
        omega = torch.full((count, batch), 1 / max(count, 1), dtype=torch.float32, device=y.device)
    omega = omega.detach().float()
    weights = torch.cat((omega.new_full((1, batch), 1 - alpha), omega * alpha))
    sequences = torch.cat((y.unsqueeze(0), samples))
    candidates = Candidates(
        sequences.reshape(-1, length), target_weights=weights.reshape(-1), ignore_index=ignore_index
    )
    given = (Given("target", y, ignore_index), Given("samples", samples, ignore_index))
    flat = _smoothed(candidates, table, token_alpha, given, impl)
    return _of_table(Target(sequences.shape, flat, given, counted=y != ignore_index), table)


def entries(indices: Tensor, weights: Tensor, uniform: Tensor | None = None) -> Target:
    """Return a target that is given as entries: anything sparse.

    Args:
        indices: ``(..., S)`` int32 or int64 classes. A class may repeat: its weights add up. Negative: an empty slot.
        weights: ``(..., S)``, floating, constant for the gradient.
        uniform: ``(...)`` mass spread evenly over all classes, or None.

    Raises:
        TypeError, ValueError: an argument of the wrong type or shape, or one that requires grad.
    """
    check_tensor(indices, "indices", floating=False)
    if indices.dim() == 0:
        raise ValueError("indices: got shape (), expected (..., S)")
    shape = indices.shape[:-1]
    _check_mass(weights, "weights", indices, tuple(indices.shape), "as indices")
    if uniform is not None:
        _check_mass(uniform, "uniform", indices, tuple(shape), "one number a position")
        uniform = _at_least_float32(uniform).reshape(-1)
    flat = FlatTarget(_rows(indices), _rows(_at_least_float32(weights)), uniform)
    return Target(shape, flat, (Given("indices", indices, None),))


def top_k(indices: Tensor, log_probs: Tensor, *, temperature: float = 1.0, missing: Missing = "uniform") -> Target:
    """Return the distribution of a teacher of which the K largest log-probabilities are known.

    Args:
        indices: ``(..., K)`` int32 or int64 classes; negative: an empty slot, so that K may be ragged.
        log_probs: ``(..., K)`` their log-probabilities, floating, constant for the gradient.
        temperature: the K classes share the mass that they have as ``softmax(log_probs / temperature)`` does.
        missing: what becomes of the mass of all other classes: "uniform" spreads it evenly over all classes,
            "renormalize" divides it out, "drop" leaves it out, so that the target's mass is less than one.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape or range.
    """
    check_choice(missing, "missing", ("uniform", "renormalize", "drop"))
    temperature = check_number(temperature, "temperature", 0.0, open_low=True)
    check_tensor(indices, "indices", floating=False)
    _check_mass(log_probs, "log_probs", indices, tuple(indices.shape), "as indices")
    known = _at_least_float32(log_probs).masked_fill(indices < 0, -torch.inf)
    kept = known.exp().sum(-1, keepdim=True).clamp(max=1.0)
    has_any = (indices >= 0).any(-1, keepdim=True)
    weights = (known / temperature).where(has_any, 0.0).softmax(-1).where(indices >= 0, 0.0)
    if missing != "renormalize":
        weights = weights * kept
    uniform = (1 - kept).where(has_any, 0.0).squeeze(-1) if missing == "uniform" else None
    return entries(indices, weights, uniform)


# ---- checks


def _check_smoothing(
    y: Tensor, alpha: float, table: SimilarityTable | None, token_alpha: float, ignore_index: int
) -> tuple[float, float, int]:
    check_tensor(y, "target", floating=False)
    alpha = check_number(alpha, "alpha", 0.0, 1.0)
    token_alpha = check_number(token_alpha, "token_alpha", 0.0, 1.0)
    _check_table(table, token_alpha, "token_alpha", y)
    return alpha, token_alpha, as_integer(ignore_index, "ignore_index")


def check_table(table: object, alpha: float, name: str) -> None:
    """Raise TypeError for what is no table, ValueError for none where `alpha` asks for one."""
    if table is None:
        if alpha:
            raise ValueError(f"{name}: got {alpha} without a table, expected 0, or table= to smooth over")
    elif not isinstance(table, SimilarityTable):
        raise TypeError(f"table: got {type(table).__name__}, expected a smoothloss.SimilarityTable")


def _check_table(table: SimilarityTable | None, alpha: float, name: str, y: Tensor) -> None:
    check_table(table, alpha, name)
    if table is not None:
        check_device(table.indices, "table", y, "target")


def _check_samples(y: Tensor, samples: Tensor, sample_weights: Tensor | None) -> Tensor:
    """Return the samples in the dtype of the ground truth."""
    if y.dim() != 2:
        raise ValueError(f"target: got shape {tuple(y.shape)}, expected (B, T)")
    check_tensor(samples, "samples", floating=False)
    if samples.dim() != 3:
        raise ValueError(f"samples: got shape {tuple(samples.shape)}, expected (L, B, T)")
    check_shape(samples, "samples", (samples.shape[0], *y.shape), "L samples of the target")
    check_device(samples, "samples", y, "target")
    if sample_weights is not None:
        _check_mass(sample_weights, "sample_weights", y, tuple(samples.shape[:2]), "(L, B) of samples")
    return samples if samples.dtype == y.dtype else samples.to(y.dtype)


def _check_mass(value: Tensor, name: str, like: Tensor, shape: tuple[int, ...], meaning: str) -> None:
    check_tensor(value, name, floating=True)
    check_local(value, name)
    check_shape(value, name, shape, meaning)
    check_device(value, name, like, "indices")
    check_constant(value, name)


# ---- building


def _of_table(target: Target, table: SimilarityTable | None) -> Target:
    """Return the target, knowing the number of classes of the table."""
    if table is not None:
        target.num_classes = table.num_tokens
    return target


def _built(
    candidates: Candidates, table: TableRows | None, token_alpha: float, given: tuple[Given, ...], impl: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    try:
        return smoothed_target(candidates, table, token_alpha, impl)
    except OutOfRange:
        for name, tensor, ignore_index in given:
            check_index_values(tensor, _LARGEST, name, "classes at most", ignore_index)
        raise


def _smoothed(
    candidates: Candidates, table: SimilarityTable | None, token_alpha: float, given: tuple[Given, ...], impl: str
) -> FlatTarget:
    """Return the target of candidates, one row a position."""
    rows = None
    if table is not None and table.tail_mode != "exact" and token_alpha:
        rows = TableRows(table.indices, table.weights, table.tail if table.tail_mode == "uniform" else None)
    indices, weights, uniform = _built(candidates, rows, token_alpha, given, impl)
    if table is None or table.tail_mode != "exact" or not token_alpha:
        return FlatTarget(indices, weights, uniform)
    factors = (table.unit_vectors, table.log_normalizer, table.has_neighbours, table.counts, table.tau, table.beta)
    source = SimilarityMixture(indices, weights * token_alpha, *factors)
    return FlatTarget(indices, weights * (1 - token_alpha), None, None, source)


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
    return a._replace(tokens=torch.cat((a.tokens, b.tokens), -1), weights=torch.cat((a.weights, b.weights), -1))


def _rows(tensor: Tensor) -> Tensor:
    """Flatten all dimensions but the last."""
    return tensor.unsqueeze(0) if tensor.dim() == 1 else tensor if tensor.dim() == 2 else tensor.flatten(0, -2)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


# ---- what can be asked of a target


def _float_dtype(flat: FlatTarget) -> torch.dtype:
    return torch.float32 if flat.weights is None else flat.weights.dtype


def _mixture(dense: DenseRows) -> Tensor:
    """Return ``sum_j weights[n, j] values[rows[n, j]]``, ``(N, V)``."""
    filled = (dense.rows >= 0) & (dense.rows < dense.values.shape[0])
    shares = dense.weights.new_zeros(dense.rows.shape[0], dense.values.shape[0])
    shares = shares.scatter_add(1, dense.rows.where(filled, 0).long(), dense.weights.where(filled, 0.0))
    with without_autocast(shares.device.type):
        return shares @ dense.values


def _negative_entropy(flat: FlatTarget, num_classes: int, label_smoothing: float) -> Tensor:
    """Return ``sum_v q_v log q_v`` of every row's target q: what turns cross-entropy into KL."""
    assert flat.weights is not None
    mass = flat.mass(num_classes, _float_dtype(flat))
    if flat.source is not None:
        dense = (1 - label_smoothing) * Target._dense(flat, num_classes) + label_smoothing * mass.unsqueeze(
            -1
        ) / num_classes
        return torch.xlogy(dense, dense).sum(-1)
    indices = flat.indices.where(flat.indices < num_classes, -1)
    indices, weights = merge_equal(indices, flat.weights)
    uniform = torch.zeros_like(mass) if flat.uniform is None else flat.uniform
    floor = ((1 - label_smoothing) * uniform + label_smoothing * mass).unsqueeze(-1) / num_classes
    own = (1 - label_smoothing) * weights + floor
    filled = indices >= 0
    inside = torch.xlogy(own, own).where(filled, 0.0).sum(-1)
    rest = num_classes - filled.sum(-1)
    return inside + rest * torch.xlogy(floor, floor).squeeze(-1)


lazy_sequence_target = lazy_sequence  # the name that it had before a target was a value
