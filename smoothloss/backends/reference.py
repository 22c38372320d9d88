"""The primitive in eager PyTorch: the definition that the kernels are tested against.

Any device, any floating dtype, differentiable twice. 16-bit logits are computed in float32, float64 in float64.
Memory is no concern here: the ``(N, V)`` log-probabilities are materialised.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smoothloss.backends.common import (
    DenseRows,
    RowOptions,
    SparseRows,
    accumulator_dtype,
    merge_equal,
    target_mass,
)


def unavailable(device_type: str, dtype: torch.dtype) -> str | None:
    """Return why the reference cannot run, which is never: None."""
    del device_type, dtype
    return None


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


def _times(weight: Tensor, value: Tensor) -> Tensor:
    """Return ``weight * value`` with ``0 * inf = 0``: what has no weight has no influence."""
    return torch.where(weight == 0, 0.0, weight * value.where(weight != 0, 0.0))


def sparse_cross_entropy(
    logits: Tensor,  # (N, V)
    indices: Tensor,  # (N, S)
    weights: Tensor,  # (N, S)
    uniform: Tensor | None,  # (N,)
    options: RowOptions,
    dense: DenseRows | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the loss of every row and the mass of its target, both ``(N,)``.

    ::

        loss = sum_s w_s (lse - z_{i_s}) + u (lse - mean_v z_v) + z_loss lse^2 - gamma H(softmax(z))

    `dense` adds ``sum_v q_v (lse - z_v)``, q the mixture of dense rows.
    """
    num_classes = logits.shape[-1]
    mass = target_mass(indices, weights, uniform, num_classes)
    if dense is not None:
        mass = mass + target_mass(dense.rows, dense.weights, None, dense.values.shape[0])
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
        loss = loss + _times((1 - eps) * mixture(dense), nll).sum(-1)
    if options.z_loss:
        loss = loss + options.z_loss * z.logsumexp(-1).square()
    if options.entropy:
        # 0 log 0 = 0
        loss = loss - options.entropy * _times((-nll).exp(), nll).sum(-1)
    return loss.where(valid, 0.0), mass


def mixture(dense: DenseRows) -> Tensor:
    """Return ``q_n = sum_j weights[n, j] values[rows[n, j]]`` as a matrix ``(N, V)``."""
    num_rows = dense.values.shape[0]
    filled = (dense.rows >= 0) & (dense.rows < num_rows)
    shares = dense.weights.new_zeros(dense.rows.shape[0], num_rows)
    shares = shares.scatter_add(1, dense.rows.where(filled, 0).long(), dense.weights.where(filled, 0.0))
    return shares @ dense.values.to(shares.dtype)


def smoothed_target(
    candidates: Tensor,  # (J, B, T)
    weights: Tensor | None,  # (J, B)
    table: SparseRows | None,
    token_alpha: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return ``sum_j w_j ((1 - token_alpha) delta(y_j) + token_alpha R[y_j])``: ``y_j`` candidates, ``w_j`` weights.

    Equal candidates of a position are merged into the first of them. Candidate j fills the slots from ``j (K + 1)`` on:
    its own token, then its K neighbours; without a table K is 0. A position whose candidate 0 is `ignore_index` has no
    entry, other candidates that are `ignore_index`, or negative, none of theirs. A candidate beyond the table keeps its
    own entry. Without `weights` they all weigh 1.

    Returns:
        ``indices (B T, S)`` int32, -1 in empty slots, ``weights (B T, S)`` float32, ``S = J (K + 1)``, and the mass of
        the tails ``(B T,)`` float32, None without a table or tails.
    """
    num_candidates = candidates.shape[0]
    if weights is None:
        weights = candidates.new_ones(candidates.shape[:2], dtype=torch.float32)
    tokens = candidates.flatten(1).t()
    shares = weights.float().unsqueeze(-1).expand(candidates.shape).flatten(1).t()
    ignored = (tokens[:, :1] == ignore_index) | (tokens == ignore_index) | (tokens < 0)
    tokens, shares = merge_equal(tokens.masked_fill(ignored, -1), shares)
    if table is None:
        return tokens.int().contiguous(), shares.contiguous(), None
    num_tokens = table.indices.shape[0]
    known = (tokens >= 0) & (tokens < num_tokens)
    row = tokens.where(known, 0).long()
    neighbours = table.indices[row].where(known.unsqueeze(-1), -1)
    smoothing = token_alpha * shares
    neighbour_weights = (smoothing.unsqueeze(-1) * table.weights[row]).where(neighbours >= 0, 0.0)
    slots = num_candidates * (table.indices.shape[1] + 1)
    indices = torch.cat((tokens.int().unsqueeze(-1), neighbours), -1).reshape(-1, slots)
    own = ((1 - token_alpha) * shares).unsqueeze(-1)
    uniform = None if table.tail is None else (smoothing * table.tail[row]).where(known, 0.0).sum(-1)
    return indices, torch.cat((own, neighbour_weights), -1).reshape(-1, slots), uniform


def mean(losses: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``losses.sum() / count`` and ``1 / max(count, 1)``, count the number of masses that are not 0."""
    count = mass.count_nonzero()
    # Nothing to average gives nan, as torch does; its gradient is zero and must not become 0 * inf.
    return losses.sum() / count, count.clamp(min=1).to(losses.dtype).reciprocal()


def scaled_copy(values: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``(values * factor).to(dtype)``, rounded once."""
    # torch.mul computes in the wider of both dtypes and rounds once, to that of `out`: one pass, no temporary.
    return torch.mul(values, factor, out=torch.empty_like(values, dtype=dtype))


def logsumexp_and_select(logits: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``logits.logsumexp(-1)`` (N,) and ``logits.gather(-1, indices)`` (N, S), 0 for empty slots."""
    z = transform_logits(logits, RowOptions())
    return z.logsumexp(-1), select(z, indices)[0]
