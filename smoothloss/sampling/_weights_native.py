"""Importance weights in one kernel, ``smoothloss._C``'s for CPU tensors, ``smoothloss._C_cuda``'s for CUDA tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from smoothloss import _compiled as compiled
from smoothloss.ops.transforms import is_eager, needs_the_reference

if TYPE_CHECKING:
    from smoothloss.sampling.importance import Weighing

_CODES = {torch.float32: 0, torch.float64: 1}


def unavailable(weighing: Weighing) -> str | None:
    """Return why the kernels cannot weigh these samples, or None when they can."""
    scores, log_prob = weighing.scores, weighing.log_prob
    if not is_eager(scores, log_prob) or needs_the_reference():
        return "the kernel needs memory to read, which fake tensors, transforms and compiled code do not show"
    if torch.is_grad_enabled() and (scores.requires_grad or log_prob.requires_grad):
        return "the kernel has no gradient, and an input requires grad"
    if max(weighing.scores.shape[0] * weighing.scores.shape[1], *weighing.scores.shape) > torch.iinfo(torch.int32).max:
        return "the kernel counts samples in 32 bits"
    return compiled.why_not(scores.device)


def weigh(weighing: Weighing) -> Tensor:
    """Return `_weights_reference.weigh` in one pass."""
    scores, log_prob = _readable(weighing.scores), _readable(weighing.log_prob)
    weights = torch.empty(weighing.scores.shape, dtype=weighing.dtype, device=scores.device)
    compiled.call(
        "importance_weights",
        scores,
        (scores.data_ptr(), _CODES[scores.dtype], *scores.stride()),
        (log_prob.data_ptr(), _CODES[log_prob.dtype], *log_prob.stride()),
        *weighing.scores.shape,
        (weighing.tau, weighing.clip, weighing.of_batch),
        weights.data_ptr(),
    )
    return weights


def _readable(numbers: Tensor) -> Tensor:
    """Return the numbers as they stand in memory, which float32 and float64 do but for a sign that is to come."""
    return (numbers if numbers.dtype in _CODES else numbers.float()).resolve_neg()
