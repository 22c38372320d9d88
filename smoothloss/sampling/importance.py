"""Importance weights: what makes samples of one distribution stand for another."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch

from smoothloss._validation import check_number
from smoothloss.sampling import _weights_reference
from smoothloss.sampling._implementations import Implementations

Implementation = Literal["auto", "reference", "native"]
_IMPLEMENTATIONS = Implementations(
    {"reference": "smoothloss.sampling._weights_reference", "native": "smoothloss.sampling._weights_native"},
    preference={"cpu": ("native", "reference"), "cuda": ("native", "reference")},
)


class Weighing(NamedTuple):
    """What an implementation is given, checked.

    Attributes:
        scores: ``(L, B)``, of any floating dtype and layout.
        log_prob: ``(L, B)``, of any floating dtype and layout.
        tau: temperature, within 1e-37 and 1e37: beyond, a temperature is as good as that.
        clip: upper bound of the scores; inf: none.
        of_batch: whether the whole batch is normalised together.
        dtype: of the arithmetic and of the weights.
    """

    scores: torch.Tensor
    log_prob: torch.Tensor
    tau: float
    clip: float
    of_batch: bool
    dtype: torch.dtype


def importance_weights(
    scores: torch.Tensor,
    log_prob: torch.Tensor,
    *,
    tau: float,
    normalize: Literal["samples", "batch"] = "samples",
    clip: float | None = None,
    impl: Implementation = "auto",
) -> torch.Tensor:
    """``softmax(scores / tau - log_prob, dim=0)``: weights of samples of q for ``r(y) ∝ exp(score(y) / tau)``.

    At the ends of the numbers it is the limit of that: where the largest score is inf, the samples that have it share
    the weight; where all scores are -inf, all samples do.

    Args:
        scores: ``(L, B)`` floating point rewards of the samples.
        log_prob: ``(L, B)`` floating point ``log q`` of the samples.
        tau: Temperature of the rewards, > 0.
        normalize: ``"samples"``: the weights of each input sum to one over its L samples (Eq. 11). ``"batch"``: they
            are divided by the mini-batch's mean instead, so that their sums over L average to one over the batch.
            That is what gives L = 1 a meaning, and what the authors ran.
        clip: Upper bound of the scores, applied first. The authors clip CIDEr at 1.
        impl: ``"auto"``, or the implementation that must weigh: ``"reference"``, which is differentiable, or
            ``"native"``, one kernel.

    Returns:
        ``(L, B)`` float32, or float64 when an input is. Computed in log space.

    Raises:
        TypeError: An input is no floating-point tensor, or ``tau`` or ``clip`` no number.
        ValueError: Shapes differ or are not ``(L, B)``, devices differ, or an option is out of its range.
        RuntimeError: ``impl`` names an implementation that cannot run there, with the reason.
    """
    for name, tensor in (("scores", scores), ("log_prob", log_prob)):
        _check_floating(tensor, name)
    if scores.dim() != 2 or scores.shape != log_prob.shape:
        raise ValueError(
            f"scores, log_prob: got shapes {tuple(scores.shape)} and {tuple(log_prob.shape)}, expected (L, B) for both"
        )
    if scores.device != log_prob.device:
        raise ValueError(f"log_prob: got a tensor on {log_prob.device}, expected {scores.device}, where scores is")
    tau = check_number(tau, "tau", 0.0, open_low=True)
    if normalize not in ("samples", "batch"):
        raise ValueError(f"normalize: got {normalize!r}, expected 'samples' or 'batch'")
    bound = math.inf if clip is None else check_number(clip, "clip", finite=False)
    _IMPLEMENTATIONS.check(impl)
    dtype = torch.float64 if torch.float64 in (scores.dtype, log_prob.dtype) else torch.float32
    tau, bound = min(max(tau, 1e-37), 1e37), _within(bound, dtype)
    weighing = Weighing(scores, log_prob, tau, bound, normalize == "batch", dtype)
    if impl != "native" and torch.compiler.is_compiling():  # which does not follow the choice
        return _weights_reference.weigh(weighing)
    weights: torch.Tensor = _IMPLEMENTATIONS.module(impl, scores.device, weighing).weigh(weighing)
    return weights


def _within(bound: float, dtype: torch.dtype) -> float:
    """Return the bound, or the infinity beyond it where the dtype does not reach it."""
    return bound if abs(bound) <= torch.finfo(dtype).max else math.copysign(math.inf, bound)


def effective_sample_size(weights: torch.Tensor) -> torch.Tensor:
    """``weights.sum(0) ** 2 / (weights ** 2).sum(0)``: L for equal weights, 1 when a single sample has them all.

    Args:
        weights: ``(L, B)`` floating point, >= 0; any scale.

    Returns:
        ``(B,)``; 0 where all weights are 0.

    Raises:
        TypeError: ``weights`` is no floating-point tensor.
        ValueError: ``weights`` is not 2-D.
    """
    _check_floating(weights, "weights")
    if weights.dim() != 2:
        raise ValueError(f"weights: got shape {tuple(weights.shape)}, expected (L, B)")
    # Scaled by the largest weight, so that no square underflows.
    largest = torch.linalg.vector_norm(weights, ord=math.inf, dim=0) if weights.numel() else weights.sum(dim=0)
    scaled = weights / torch.where(largest > 0, largest, 1.0)
    return scaled.sum(dim=0).square() / scaled.square().sum(dim=0).clamp(min=1.0)


def _check_floating(tensor: object, name: str) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: got {type(tensor).__name__}, expected a torch.Tensor")
    if not tensor.dtype.is_floating_point:
        raise TypeError(f"{name}: got dtype {tensor.dtype}, expected a floating point type")
