"""The primitive in eager PyTorch: the definition that the kernels are tested against.

Any device, any floating dtype, differentiable twice, under every transform of `torch.func`. 16-bit logits are computed
in float32, float64 in float64. Memory is no concern here: the ``(N, V)`` log-probabilities are materialised.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smoothloss.backends.common import (
    Candidates,
    DenseRows,
    Forward,
    RowOptions,
    RowTarget,
    TableRows,
    TokenStatistics,
    accumulator_dtype,
    mass_of,
    merge_equal,
    slots_of,
    without_autocast,
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
    if options.softcap != 0.0:
        z = options.softcap * torch.tanh(z / options.softcap)
    return z


def _selected(z: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``z[n, indices[n, s]]`` (N, S), 0 for empty slots, and the mask of filled slots."""
    filled = (indices >= 0) & (indices < z.shape[-1])
    picked = z.gather(-1, indices.where(filled, 0).long())
    return picked.where(filled, 0.0), filled


def _times(weight: Tensor, value: Tensor) -> Tensor:
    """Return ``weight * value`` with ``0 * inf = 0``: what has no weight has no influence."""
    return torch.where(weight == 0, 0.0, weight * value.where(weight != 0, 0.0))


def forward(logits: Tensor, target: RowTarget, options: RowOptions, reduction: str) -> Forward:
    """Return the losses of logits ``(N, V)``, see `Backend`; differentiable in the logits, and so without statistics.

    ::

        loss = sum_s w_s (lse - z_{i_s}) + u (lse - mean_v z_v) + z_loss lse^2 - gamma H(softmax(z))

    Dense rows add ``sum_v q_v (lse - z_v)``, q their mixture. With a prior ``sum_v prior_v z_v`` takes the place of the
    mean.
    """
    mass = mass_of(target, logits.shape[-1]).to(accumulator_dtype(logits.dtype))
    losses = _losses(logits, target, options, mass)
    if reduction == "none":
        return Forward(losses, None, mass, None)
    loss, scale = reduce(losses, mass, reduction)
    return Forward(loss, None, None, scale)


def _losses(logits: Tensor, target: RowTarget, options: RowOptions, mass: Tensor) -> Tensor:
    indices, weights = slots_of(target)
    valid = mass != 0
    # A row without mass must not let its NaNs through, neither forward nor backward.
    z = transform_logits(logits.where(valid.unsqueeze(-1), 0.0), options)
    # -log p rather than lse - z: the rounding of lse would be a relative error of every gradient in the row.
    nll = -z.log_softmax(-1)
    selected, filled = _selected(nll, indices)
    eps = options.label_smoothing
    loss = _times(weights.to(z.dtype).where(filled, 0.0) * (1 - eps), selected).sum(-1)
    if target.uniform is not None or eps != 0.0:
        spread = eps * mass if target.uniform is None else (1 - eps) * target.uniform + eps * mass
        loss = loss + _times(spread, nll.mean(-1) if target.prior is None else _times(target.prior, nll).sum(-1))
    if target.dense is not None:
        loss = loss + _times((1 - eps) * mixture(target.dense), nll).sum(-1)
    if options.z_loss != 0.0:
        loss = loss + options.z_loss * z.logsumexp(-1).square()
    if options.entropy != 0.0:
        # 0 log 0 = 0
        loss = loss - options.entropy * _times((-nll).exp(), nll).sum(-1)
    return loss.where(valid, 0.0)


def mixture(dense: DenseRows) -> Tensor:
    """Return ``q_n = sum_j weights[n, j] values[rows[n, j]]`` as a matrix ``(N, V)``."""
    num_rows = dense.values.shape[0]
    filled = (dense.rows >= 0) & (dense.rows < num_rows)
    shares = dense.weights.new_zeros(dense.rows.shape[0], num_rows)
    shares = shares.scatter_add(1, dense.rows.where(filled, 0).long(), dense.weights.where(filled, 0.0))
    with without_autocast(shares.device.type):
        return shares @ dense.values.to(shares.dtype)


def smoothed_target(
    candidates: Candidates, table: TableRows | None, token_alpha: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return ``sum_j w_j ((1 - token_alpha) delta(y_j) + token_alpha R[y_j])``: ``y_j`` candidates, ``w_j`` weights.

    Equal candidates of a position are merged into the first of them. Candidate j fills the slots from ``j (K + 1)`` on:
    its own token, then its K neighbours; without a table K is 0. A position whose ground truth is `ignore_index` has no
    entry, samples that are `ignore_index`, or negative, none of theirs. A candidate beyond the table keeps its own
    entry.

    Returns:
        ``indices (B T, S)`` int32, -1 in empty slots, ``weights (B T, S)`` float32, ``S = J (K + 1)``, and the mass of
        the tails ``(B T,)`` float32, None without a table or tails.
    """
    tokens, shares = _tokens_and_shares(candidates)
    ignore_index = candidates.ignore_index
    ignored = (tokens[..., :1] == ignore_index) | (tokens == ignore_index) | (tokens < 0)
    tokens, shares = merge_equal(tokens.masked_fill(ignored, -1), shares)
    if table is None:
        return _as_int32(tokens).contiguous(), shares.contiguous(), None
    num_tokens = table.indices.shape[0]
    known = (tokens >= 0) & (tokens < num_tokens)
    row = tokens.where(known, 0).long()
    neighbours = table.indices[row].where(known.unsqueeze(-1), -1)
    smoothing = token_alpha * shares
    neighbour_weights = (smoothing.unsqueeze(-1) * table.weights[row]).where(neighbours >= 0, 0.0)
    slots = candidates.per_position() * (table.indices.shape[1] + 1)
    indices = torch.cat((_as_int32(tokens).unsqueeze(-1), neighbours), -1).reshape(-1, slots)
    own = ((1 - token_alpha) * shares).unsqueeze(-1)
    uniform = None if table.tail is None else (smoothing * table.tail[row]).where(known, 0.0).sum(-1)
    return indices, torch.cat((own, neighbour_weights), -1).reshape(-1, slots), uniform


def _tokens_and_shares(candidates: Candidates) -> tuple[Tensor, Tensor]:
    """Return tokens and weights of the candidates of each position, ``(B T, J)``."""
    target, samples, alpha = candidates.target, candidates.samples, candidates.alpha
    own = candidates.target_weights
    if own is None:
        own = torch.ones(target.shape[0], dtype=torch.float32, device=target.device)
    tokens, shares = target.unsqueeze(0), (1 - alpha) * own.unsqueeze(0)
    if samples is not None:
        omega = candidates.sample_weights
        if omega is None:
            omega = torch.full(
                samples.shape[:2], 1 / max(samples.shape[0], 1), dtype=torch.float32, device=target.device
            )
        tokens, shares = torch.cat((tokens, samples)), torch.cat((shares, alpha * omega.float()))
    shares = shares.unsqueeze(-1).expand(tokens.shape)
    return tokens.flatten(1).t(), shares.flatten(1).t()


def _as_int32(tokens: Tensor) -> Tensor:
    # Beyond int32 is beyond any vocabulary: such an index must not wrap around into it.
    return tokens.clamp(max=torch.iinfo(torch.int32).max).int()


def reduce(losses: Tensor, mass: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    """Return "sum" or "mean" of losses ``(N,)`` and the factor that it gives the gradient, see `Backend`."""
    if reduction == "sum":
        return losses.sum(), losses.new_ones(())
    count = (mass != 0).sum()
    # Nothing to average gives nan, as torch does; its gradient is zero and must not become 0 * inf.
    return losses.sum() / count, count.clamp(min=1).to(losses.dtype).reciprocal()


def token_statistics(logits: Tensor, indices: Tensor, options: RowOptions) -> tuple[TokenStatistics, None]:
    """Return the statistics of logits ``(N, V)`` at indices ``(N, S)``, see `Backend`; differentiable in the logits.

    ::

        log_p = z.log_softmax(-1)
        log_prob = log_p.gather(-1, indices);  log_rest = log_p.masked_fill(listed, -inf).logsumexp(-1)
        entropy = -(log_p.exp() * log_p).sum(-1);  logsumexp = z.logsumexp(-1);  argmax = logits.argmax(-1)
    """
    z = transform_logits(logits, options)
    selected, filled = _selected(z, indices)
    center, log_sum = _centered_logsumexp(z)
    # Scalars of a row are added up in float64, and rounded once: at -20 a number in float32 is known to 1e-6.
    log_prob = (selected.to(log_sum.dtype) - center.unsqueeze(-1)) - log_sum.unsqueeze(-1)
    log_p = (z - center.to(z.dtype).unsqueeze(-1)) - log_sum.to(z.dtype).unsqueeze(-1)
    statistics = TokenStatistics(
        log_prob.to(z.dtype).where(filled, 0.0),
        _log_rest(z, _listed(indices, filled, z.shape[-1])).to(z.dtype),
        -_times(log_p.exp(), log_p).sum(-1),  # 0 log 0 = 0
        (center + log_sum).to(z.dtype),
        logits.argmax(-1),
    )
    return statistics, None


def _centered_logsumexp(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest logit (constant), and ``log sum exp(z - largest)``: -inf with gradient 0 where all are -inf.

    Apart, because their sum would lose the logarithm beside a large offset.
    """
    wide = z.dtype if z.device.type == "mps" else torch.float64  # which it does not have
    largest = z.detach().amax(-1)
    center = largest.where(largest != -torch.inf, 0.0)
    total = (z - center.unsqueeze(-1)).exp().sum(-1).to(wide)
    is_nothing = total == 0
    return center.to(wide), total.masked_fill(is_nothing, 1.0).log().masked_fill(is_nothing, -torch.inf)


def _log_rest(z: Tensor, listed: Tensor) -> Tensor:
    """Return ``log(rest / (rest + named))``, both summed over themselves; neither a small nor a large share cancels."""
    rest_center, rest = _centered_logsumexp(z.masked_fill(listed, -torch.inf))
    center, named = _centered_logsumexp(z.masked_fill(~listed, -torch.inf))
    is_nothing = rest == -torch.inf
    odds = ((rest_center - center) + (rest - named)).masked_fill(is_nothing, 0.0)
    return torch.nn.functional.logsigmoid(odds).masked_fill(is_nothing, -torch.inf)


def _listed(indices: Tensor, filled: Tensor, num_classes: int) -> Tensor:
    """Return which classes the slots of each row name, ``(N, V)``."""
    marks = torch.zeros(*indices.shape[:-1], num_classes + 1, dtype=torch.bool, device=indices.device)
    return marks.scatter(-1, indices.where(filled, num_classes).long(), True)[..., :-1]
