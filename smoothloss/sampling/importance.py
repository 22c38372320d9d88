"""Importance weights: what makes samples of one distribution stand for another."""

from __future__ import annotations

import math
from typing import Literal

import torch

from smoothloss._numbers import as_positive, as_real


def importance_weights(
    scores: torch.Tensor,
    log_prob: torch.Tensor,
    *,
    tau: float,
    normalize: Literal["samples", "batch"] = "samples",
    clip: float | None = None,
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

    Returns:
        ``(L, B)`` float32, or float64 when an input is. Computed in log space.

    Raises:
        TypeError: An input is no floating-point tensor, or ``tau`` or ``clip`` no number.
        ValueError: Shapes differ or are not ``(L, B)``, devices differ, or an option is out of its range.
    """
    for name, tensor in (("scores", scores), ("log_prob", log_prob)):
        _check_floating(tensor, name)
    if scores.dim() != 2 or scores.shape != log_prob.shape:
        raise ValueError(
            f"scores, log_prob: got shapes {tuple(scores.shape)} and {tuple(log_prob.shape)}, expected (L, B) for both"
        )
    if scores.device != log_prob.device:
        raise ValueError(f"log_prob: got a tensor on {log_prob.device}, expected {scores.device}, where scores is")
    tau = as_positive(tau, "tau")
    if normalize not in ("samples", "batch"):
        raise ValueError(f"normalize: got {normalize!r}, expected 'samples' or 'batch'")
    bound = math.inf if clip is None else as_real(clip, "clip")
    if math.isnan(bound):
        raise ValueError("clip: got nan, expected a number or None")
    dtype = torch.promote_types(torch.promote_types(scores.dtype, log_prob.dtype), torch.float32)
    scores, log_prob = scores.to(dtype), log_prob.to(dtype)
    if clip is not None:
        scores = scores.clamp(max=bound)
    if normalize == "samples":
        return _weights(scores, log_prob, tau)
    return _weights(scores.reshape(-1, 1), log_prob.reshape(-1, 1), tau).view_as(scores) * scores.shape[1]


def _weights(scores: torch.Tensor, log_prob: torch.Tensor, tau: float) -> torch.Tensor:
    """``softmax(scores / tau - log_prob, dim=0)``."""
    # Differences are divided by tau, not the scores themselves, which could round or overflow.
    log_weights = _below_largest(scores) / min(max(tau, 1e-37), 1e37)
    # What no sample of q is, and has no reward either, has no weight.
    return _below_largest(torch.where(log_weights == -math.inf, log_weights, log_weights - log_prob)).softmax(dim=0)


def _below_largest(values: torch.Tensor) -> torch.Tensor:
    """``values - values.amax(0)``, where an infinite value is 0 below itself."""
    if values.numel() == 0:
        return values
    largest = values.amax(dim=0, keepdim=True)
    return torch.where(values == largest, torch.zeros_like(values), values - largest)


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
