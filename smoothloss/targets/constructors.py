"""The constructors of targets, checked where they are called."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from smoothloss._validation import (
    check_choice,
    check_constant,
    check_device,
    check_ignore_index,
    check_local,
    check_number,
    check_shape,
    check_tensor,
)
from smoothloss.backends import Implementation
from smoothloss.backends.common import Candidates, TableRows
from smoothloss.ops.similarity_rows import SimilarityMixture
from smoothloss.ops.target import FlatTarget
from smoothloss.similarity import SimilarityTable
from smoothloss.targets.shares import check_temperature, shares
from smoothloss.targets.target import Counted, Given, Target, build

Missing = Literal["uniform", "renormalize", "drop"]


def labels(y: Tensor, *, ignore_index: int = -100) -> Target:
    """Return ``delta(y)``: class numbers, the target of maximum likelihood.

    Args:
        y: ``(...)`` int64 or int32 class numbers.
        ignore_index: positions with this class number have no mass.

    Raises:
        TypeError: `y` is no integer tensor, `ignore_index` no integer.

    Source: Eq. 4-7.
    """
    _check_classes(y, "target")
    ignore_index = check_ignore_index(ignore_index)
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
    if table is None or alpha == 0.0:
        _check_table(table, alpha, "alpha", y)
        return _of_table(labels(y, ignore_index=ignore_index), table)
    _check_classes(y, "target")
    _check_table(table, alpha, "alpha", y)
    ignore_index = check_ignore_index(ignore_index)
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
    given = (Given("target", y, ignore_index), Given("samples", samples, ignore_index))
    y, samples = _check_samples(y, samples, sample_weights)
    if samples.shape[0] == 0:
        return token(y, table, token_alpha, ignore_index=ignore_index, impl=impl) * (1 - alpha)
    omega = None if sample_weights is None else _at_least_float32(sample_weights.detach()).contiguous()
    candidates = Candidates(y.contiguous(), samples.contiguous(), None, omega, alpha, ignore_index)
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
    over the ground truth's positions, so that it compares with MLE and the lazy loss; a sentence whose ground truth is
    ignored throughout has those at which one of its samples has mass. What has no weight counts for nothing.

    Args: as `lazy_sequence`; samples may be longer or shorter than the ground truth when padded with `ignore_index` to
    the same width T.
    """
    alpha, token_alpha, ignore_index = _check_smoothing(y, alpha, table, token_alpha, ignore_index)
    given = (Given("target", y, ignore_index), Given("samples", samples, ignore_index))
    y, samples = _check_samples(y, samples, sample_weights)
    count, batch = samples.shape[:2]
    omega = sample_weights
    if omega is None:
        omega = torch.full((count, batch), 1 / max(count, 1), dtype=torch.float32, device=y.device)
    omega = omega.detach().float()
    weights = torch.cat((omega.new_ones(1, batch) * (1 - alpha), omega * alpha))
    sequences = torch.cat((y.unsqueeze(0), samples))
    candidates = Candidates(sequences.flatten(0, 1), target_weights=weights.reshape(-1), ignore_index=ignore_index)
    flat = _smoothed(candidates, table, token_alpha, given, impl)
    counted = _counted_positions(sequences != ignore_index, weights != 0)
    return _of_table(Target(sequences.shape, flat, given, counted=counted), table)


def entries(indices: Tensor, weights: Tensor, uniform: Tensor | None = None) -> Target:
    """Return a target that is given as entries: anything sparse.

    Args:
        indices: ``(..., S)`` int32 or int64 classes. A class may repeat: its weights add up. Negative: an empty slot.
        weights: ``(..., S)``, floating, constant for the gradient.
        uniform: ``(...)`` mass spread evenly over all classes, or None.

    Raises:
        TypeError, ValueError: an argument of the wrong type or shape, or one that requires grad.
    """
    _check_classes(indices, "indices")
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
        temperature: the K classes share the mass that they have as ``softmax(log_probs / temperature)`` does; alike
            where all of them are -inf. Between 1e-10 and 1e10.
        missing: what becomes of the mass of all other classes: "uniform" spreads it evenly over all classes,
            "renormalize" divides it out, "drop" leaves it out, so that the target's mass is less than one.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape or range.
    """
    check_choice(missing, "missing", ("uniform", "renormalize", "drop"))
    temperature = check_temperature(temperature)
    _check_classes(indices, "indices")
    _check_mass(log_probs, "log_probs", indices, tuple(indices.shape), "as indices")
    filled = indices >= 0
    known = _at_least_float32(log_probs).masked_fill(~filled, -torch.inf)
    kept = known.exp().sum(-1, keepdim=True).clamp(max=1.0)
    has_any = filled.any(-1, keepdim=True)
    weights = shares(known / temperature, filled).exp()
    if missing != "renormalize":
        weights = weights * kept
    uniform = (1 - kept).where(has_any, 0.0).squeeze(-1) if missing == "uniform" else None
    return entries(indices, weights, uniform)


# ---- checks


def _check_smoothing(
    y: Tensor, alpha: float, table: SimilarityTable | None, token_alpha: float, ignore_index: int
) -> tuple[float, float, int]:
    _check_classes(y, "target")
    alpha = check_number(alpha, "alpha", 0.0, 1.0)
    token_alpha = check_number(token_alpha, "token_alpha", 0.0, 1.0)
    _check_table(table, token_alpha, "token_alpha", y)
    return alpha, token_alpha, check_ignore_index(ignore_index)


def check_table(table: object, alpha: float, name: str) -> None:
    """Raise TypeError for what is no table, ValueError for none where `alpha` asks for one."""
    if table is None:
        if alpha != 0.0:
            raise ValueError(f"{name}: got {alpha} without a table, expected 0, or table= to smooth over")
    elif not isinstance(table, SimilarityTable):
        raise TypeError(f"table: got {type(table).__name__}, expected a smoothloss.SimilarityTable")


def _check_table(table: SimilarityTable | None, alpha: float, name: str, y: Tensor) -> None:
    check_table(table, alpha, name)
    if table is not None:
        check_device(table.indices, "table", y, "target")


def _check_samples(y: Tensor, samples: Tensor, sample_weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the ground truth and the samples, in the wider of their dtypes."""
    if y.dim() != 2:
        raise ValueError(f"target: got shape {tuple(y.shape)}, expected (B, T)")
    _check_classes(samples, "samples")
    if samples.dim() != 3:
        raise ValueError(f"samples: got shape {tuple(samples.shape)}, expected (L, B, T)")
    check_shape(samples, "samples", (samples.shape[0], *y.shape), "L samples of the target")
    check_device(samples, "samples", y, "target")
    if sample_weights is not None:
        _check_mass(sample_weights, "sample_weights", y, tuple(samples.shape[:2]), "(L, B) of samples")
    return (y, samples) if y.dtype == samples.dtype else (y.long(), samples.long())


def _check_classes(value: Tensor, name: str) -> None:
    """Check class numbers, which every process has whole."""
    check_tensor(value, name, floating=False)
    check_local(value, name)


def _check_mass(value: Tensor, name: str, like: Tensor, shape: tuple[int, ...], meaning: str) -> None:
    check_tensor(value, name, floating=True)
    check_local(value, name)
    check_shape(value, name, shape, meaning)
    check_device(value, name, like, "indices")
    check_constant(value, name)


# ---- building


def _counted_positions(present: Tensor, weighs: Tensor) -> Counted:
    """Return the positions that "mean" averages over.

    Args:
        present: ``(L + 1, B, T)``, where the ground truth and its samples are not ignored.
        weighs: ``(L + 1, B)``, which of them have weight.
    """
    own = present[0] & weighs.any(0).unsqueeze(-1)
    return Counted(own, (present[1:] & weighs[1:].unsqueeze(-1)).any(0))


def _of_table(target: Target, table: SimilarityTable | None) -> Target:
    """Return the target, knowing the number of classes of the table."""
    if table is not None:
        target.num_classes = table.num_tokens
    return target


def _smoothed(
    candidates: Candidates, table: SimilarityTable | None, token_alpha: float, given: tuple[Given, ...], impl: str
) -> FlatTarget:
    """Return the target of candidates, one row a position."""
    rows = None
    if table is not None and table.tail_mode != "exact" and token_alpha != 0.0:
        rows = TableRows(table.indices, table.weights, table.tail if table.tail_mode == "uniform" else None)
    indices, weights, uniform = build(candidates, rows, token_alpha, given, impl)
    if table is None or table.tail_mode != "exact" or token_alpha == 0.0:
        return FlatTarget(indices, weights, uniform)
    factors = (table.unit_vectors, table.log_normalizer, table.has_neighbours, table.counts, table.tau, table.beta)
    source = SimilarityMixture(indices, weights * token_alpha, *factors)
    return FlatTarget(indices, weights * (1 - token_alpha), None, None, source)


def _rows(tensor: Tensor) -> Tensor:
    """Flatten all dimensions but the last."""
    return tensor.unsqueeze(0) if tensor.dim() == 1 else tensor if tensor.dim() == 2 else tensor.flatten(0, -2)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
