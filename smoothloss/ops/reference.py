"""The primitive in eager PyTorch: the definition that the kernels are tested against.

Any device, any floating dtype, differentiable twice. 16-bit logits are computed in float32, float64 in float64.
Memory is no concern here: the ``(N, V)`` log-probabilities are materialised.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smoothloss.ops.options import RowOptions


def unavailable(device_type: str, dtype: torch.dtype) -> str | None:
    """Return why the reference cannot run, which is never: None."""
    del device_type, dtype
    return None


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that losses of logits of `dtype` are computed in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def transform_logits(logits: Tensor, options: RowOptions) -> Tensor:
    """Return ``z = c tanh(s * logits / c)``, or ``s * logits`` without a softcap, in the accumulator dtype."""
    z = logits.to(accumulator_dtype(logits.dtype))
    if options.logit_scale != 1.0:
        z = z * options.logit_scale
    if options.softcap:
        z = options.softcap * torch.tanh(z / options.softcap)
    return z


def select(z: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``z[n, indices[n, s]]`` (N, S), 0 for empty slots, and the mask of filled slots."""
    filled = (indices >= 0) & (indices < z.shape[-1])
    picked = z.gather(-1, indices.where(filled, 0).long())
    return picked.where(filled, 0.0), filled


def target_mass(indices: Tensor, weights: Tensor, uniform: Tensor | None, num_classes: int) -> Tensor:
    """Return ``m = sum_s w_s + u`` over the filled slots, ``(N,)``."""
    filled = (indices >= 0) & (indices < num_classes)
    mass = weights.where(filled, 0.0).sum(-1)
    return mass if uniform is None else mass + uniform


def _times(weight: Tensor, value: Tensor) -> Tensor:
    """Return ``weight * value`` with ``0 * inf = 0``: what has no weight has no influence."""
    return torch.where(weight == 0, 0.0, weight * value.where(weight != 0, 0.0))


def sparse_cross_entropy(
    logits: Tensor,  # (N, V)
    indices: Tensor,  # (N, S)
    weights: Tensor,  # (N, S)
    uniform: Tensor | None,  # (N,)
    options: RowOptions,
    dense: Tensor | None = None,  # (N, V)
) -> tuple[Tensor, Tensor]:
    """Return the loss of every row and the mass of its target, both ``(N,)``.

    ::

        loss = sum_s w_s (lse - z_{i_s}) + u (lse - mean_v z_v) + z_loss lse^2 - gamma H(softmax(z))

    `dense` adds a dense target ``sum_v dense_v (lse - z_v)``: the exact tail of a similarity table, which exists only
    here so far.
    """
    num_classes = logits.shape[-1]
    mass = target_mass(indices, weights, uniform, num_classes)
    if dense is not None:
        mass = mass + dense.sum(-1)
    valid = mass != 0
    # A row without mass must not let its NaNs through, neither forward nor backward.
    z = transform_logits(logits.where(valid[:, None], 0.0), options)
    # -log p rather than lse - z: the rounding of lse would be a relative error of every gradient in the row.
    nll = -z.log_softmax(-1)
    selected, filled = select(nll, indices)
    eps = options.label_smoothing
    loss = _times(weights.where(filled, 0.0) * (1 - eps), selected).sum(-1)
    if uniform is not None or eps:
        spread = eps * mass if uniform is None else (1 - eps) * uniform + eps * mass
        loss = loss + _times(spread, nll.mean(-1))
    if dense is not None:
        loss = loss + _times(dense * (1 - eps), nll).sum(-1)
    if options.z_loss:
        loss = loss + options.z_loss * z.logsumexp(-1).square()
    if options.entropy:
        # 0 log 0 = 0
        loss = loss - options.entropy * _times((-nll).exp(), nll).sum(-1)
    return loss.where(valid, 0.0), mass


def logsumexp_and_select(logits: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``logits.logsumexp(-1)`` (N,) and ``logits.gather(-1, indices)`` (N, S), 0 for empty slots."""
    z = transform_logits(logits, RowOptions())
    return z.logsumexp(-1), select(z, indices)[0]
