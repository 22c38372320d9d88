"""Importance weights: what makes samples of one distribution stand for another."""

from __future__ import annotations

import math
from typing import Literal

import torch


def importance_weights(
    scores: torch.Tensor,
    log_prob: torch.Tensor,
    *,
    tau: float,
    normalize: Literal["samples", "batch"] = "samples",
    clip: float | None = None,
) -> torch.Tensor:
    """``softmax(scores / tau - log_prob, dim=0)``: weights of samples of q for ``r(y) ∝ exp(score(y) / tau)``.

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
        TypeError: An input is not floating point.
        ValueError: Shapes differ or are not ``(L, B)``, or an option is out of its range.
    """
    for name, tensor in (("scores", scores), ("log_prob", log_prob)):
        if not tensor.dtype.is_floating_point:
            raise TypeError(f"{name}: got dtype {tensor.dtype}, expected a floating point type")
    if scores.dim() != 2 or scores.shape != log_prob.shape:
        raise ValueError(
            f"scores, log_prob: got shapes {tuple(scores.shape)} and {tuple(log_prob.shape)}, expected (L, B) for both"
        )
    if not 0 < tau < math.inf:
        raise ValueError(f"tau: got {tau}, expected a finite number > 0")
    if normalize not in ("samples", "batch"):
        raise ValueError(f"normalize: got {normalize!r}, expected 'samples' or 'batch'")
    if clip is not None and math.isnan(clip):
        raise ValueError("clip: got nan, expected a number or None")
    dtype = torch.promote_types(torch.promote_types(scores.dtype, log_prob.dtype), torch.float32)
    scores, log_prob = scores.to(dtype), log_prob.to(dtype)
    if clip is not None:
        scores = scores.clamp(max=clip)
    log_weights = scores / tau - log_prob
    if normalize == "samples":
        return log_weights.softmax(dim=0)
    return log_weights.flatten().softmax(dim=0).view_as(log_weights) * log_weights.shape[1]


def effective_sample_size(weights: torch.Tensor) -> torch.Tensor:
    """``weights.sum(0) ** 2 / (weights ** 2).sum(0)``: L for equal weights, 1 when a single sample has them all.

    Args:
        weights: ``(L, B)`` floating point, >= 0; any scale.

    Returns:
        ``(B,)``; 0 where all weights are 0.

    Raises:
        ValueError: ``weights`` is not 2-D.
    """
    if weights.dim() != 2:
        raise ValueError(f"weights: got shape {tuple(weights.shape)}, expected (L, B)")
    # Scaled by the largest weight, so that no square underflows.
    largest = torch.linalg.vector_norm(weights, ord=math.inf, dim=0) if weights.numel() else weights.sum(dim=0)
    scaled = weights / torch.where(largest > 0, largest, 1.0)
    return scaled.sum(dim=0).square() / scaled.square().sum(dim=0).clamp(min=1.0)
