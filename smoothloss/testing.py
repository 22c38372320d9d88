"""Oracles, inputs and the error budget that the tests and the benchmarks share.

The oracle is written from the dense definition, ``-(q * log_softmax(z)).sum(-1)`` in float64 with a materialised target
``q`` of shape (N, V), and shares no code with the implementations, the reference among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from smoothloss.backends.common import DenseRows, RowOptions, RowTarget, StatisticsGradients, TokenStatistics
from smoothloss.similarity import SimilarityTable, TailMode


class Inputs(NamedTuple):
    """One random problem: ``logits`` (N, V), ``indices`` (N, S), ``weights`` (N, S), ``uniform`` (N,) or None."""

    logits: Tensor
    indices: Tensor
    weights: Tensor
    uniform: Tensor | None


def make_inputs(
    n: int,
    v: int,
    s: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    uniform: bool = False,
    repeats: bool = True,
    empty: float = 0.2,
    ignored: float = 0.2,
    scale: float = 3.0,
) -> Inputs:
    """Return a random sparse problem with repeated indices, empty slots and rows without any mass.

    Args:
        n: rows. v: classes. s: entries a row.
        dtype: of the logits; weights are float64 for float64 logits, else float32.
        device: of all tensors (drawn on the CPU, so that every device sees the same numbers).
        seed: of the draw.
        uniform: whether the rows carry uniform mass.
        repeats: whether about half of the entries of a row are drawn from the others, so that indices repeat.
        empty: share of empty slots (index -1, with a weight that must be disregarded).
        ignored: share of rows with no mass at all.
        scale: standard deviation of the logits.
    """
    generator = torch.Generator().manual_seed(seed)
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    logits = (torch.randn(n, v, generator=generator, dtype=torch.float64) * scale).to(dtype)
    indices = torch.randint(v, (n, s), generator=generator)
    if repeats and s > 1:
        source = torch.randint(s, (n, s), generator=generator)
        again = torch.rand(n, s, generator=generator) < 0.5
        indices = torch.where(again, indices.gather(1, source), indices)
    weights = torch.rand(n, s, generator=generator, dtype=torch.float64)
    mass = torch.rand(n, generator=generator, dtype=torch.float64) if uniform else None
    indices = indices.masked_fill(torch.rand(n, s, generator=generator) < empty, -1)
    dead = torch.rand(n, generator=generator) < ignored
    indices = indices.masked_fill(dead[:, None], -1)
    if mass is not None:
        mass = mass.masked_fill(dead, 0.0).to(accumulator).to(device)
    return Inputs(logits.to(device), indices.to(torch.int32).to(device), weights.to(accumulator).to(device), mass)


def row_target(inputs: Inputs, dense: DenseRows | None = None) -> RowTarget:
    """Return the target of a problem as the implementations take it."""
    return RowTarget(inputs.indices, inputs.weights, inputs.uniform, dense)


def make_dense_rows(inputs: Inputs, num_values: int, num_mixed: int, *, seed: int = 11) -> DenseRows:
    """Return random distributions, and slots that repeat, are empty, or lie beyond the distributions."""
    generator = torch.Generator().manual_seed(seed)
    rows, classes = inputs.logits.shape
    values = torch.randn(num_values, classes, generator=generator, dtype=torch.float64).mul(2).softmax(-1)
    places = torch.randint(num_values, (rows, num_mixed), generator=generator)
    places[torch.rand(places.shape, generator=generator) < 0.2] = -1
    places[torch.rand(places.shape, generator=generator) < 0.1] = num_values
    weights = torch.rand(rows, num_mixed, generator=generator, dtype=torch.float64)
    like = inputs.weights
    return DenseRows(values.to(like), places.int().to(like.device), weights.to(like))


def mixed_target(inputs: Inputs, dense: DenseRows) -> Tensor:
    """Return entries, uniform mass and dense rows together as a dense float64 matrix, ``(N, V)``."""
    target = dense_target(inputs.indices, inputs.weights, inputs.uniform, inputs.logits.shape[1])
    for row, (places, weights) in enumerate(zip(dense.rows.tolist(), dense.weights.double(), strict=True)):
        for place, weight in zip(places, weights, strict=True):
            if 0 <= place < len(dense.values):
                target[row] += weight * dense.values[place].double()
    return target


def make_table(num_tokens: int, *, k: int = 7, tail: TailMode = "uniform") -> SimilarityTable:
    """Return a table over random vectors and counts, with three special tokens."""
    generator = torch.Generator().manual_seed(3)
    vectors = torch.randn(num_tokens, 10, generator=generator)
    counts = torch.randint(1, 500, (num_tokens,), generator=generator)
    return SimilarityTable.from_embeddings(vectors, k=k, tau=0.2, beta=0.1, counts=counts, tail=tail, exclude=(0, 1, 2))


def table_rows(table: SimilarityTable) -> Tensor:
    """Return the dense float64 rows a table stands for, ``(V, V)``: the paper's, or its entries and spread tail."""
    if table.tail_mode == "exact":
        return table.dense().double()
    return dense_target(table.indices, table.weights, table.tail, table.num_tokens)


def make_sequences(batch: int, length: int, num_tokens: int, num_samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``target (B, T)`` with ignored positions (-100), ``samples (L, B, T)`` and weights ``(L, B)``."""
    generator = torch.Generator().manual_seed(5)
    target = torch.randint(3, num_tokens, (batch, length), generator=generator)
    changed = torch.rand(num_samples, batch, length, generator=generator) < 0.4
    substitutes = torch.randint(3, num_tokens, (num_samples, batch, length), generator=generator)
    samples = torch.where(changed, substitutes, target)
    target[0, length // 2 + 1 :] = -100
    target[-1, 1] = -100
    return target, samples, torch.rand(num_samples, batch, generator=generator).softmax(0)


def dense_target(indices: Tensor, weights: Tensor, uniform: Tensor | None, num_classes: int) -> Tensor:
    """Return the target as a dense float64 matrix: ``q[n, v] = sum_{s: i_s = v} w_s + u_n / V``, ``(N, V)``."""
    target = torch.zeros(indices.shape[0], num_classes, dtype=torch.float64, device=indices.device)
    for slot in range(indices.shape[1]):  # one slot at a time: plainly right, and repeats add up
        index, weight = indices[:, slot].long(), weights[:, slot].double()
        filled = (index >= 0) & (index < num_classes)
        rows = filled.nonzero().squeeze(1)
        target[rows, index[rows]] += weight[rows]
    if uniform is not None:
        target += uniform.double()[:, None] / num_classes
    return target


def dense_loss(logits: Tensor, target: Tensor, options: RowOptions = RowOptions()) -> Tensor:  # noqa: B008
    """Return the loss of every row against a dense target, ``(N,)``, in the dtype of the logits.

    ::

        z = softcap(logit_scale * logits);  q = (1 - eps) target + eps * target.sum(-1) / V
        loss = -(q * log_softmax(z)).sum(-1) + z_loss * lse^2 - gamma * H(softmax(z));  0 where target is all zero

    Call it on float64 logits for the oracle, or on the tested dtype for the error of eager PyTorch.
    """
    mass = target.sum(-1)
    valid = target.abs().sum(-1) != 0
    z = torch.where(valid[:, None], logits, torch.zeros_like(logits)) * options.logit_scale
    if options.softcap:
        z = options.softcap * torch.tanh(z / options.softcap)
    eps = options.label_smoothing
    q = (1 - eps) * target + eps * mass[:, None] / target.shape[1]
    log_p = z.log_softmax(-1)
    loss = -(q.to(z.dtype) * log_p).sum(-1)
    loss = loss + options.z_loss * z.logsumexp(-1) ** 2
    loss = loss + options.entropy * (log_p.exp() * log_p).sum(-1)
    return torch.where(valid, loss, torch.zeros_like(loss))


class Oracle(NamedTuple):
    """Loss of every row ``(N,)`` and the gradient of ``(loss * grad).sum()`` with respect to the logits ``(N, V)``."""

    loss: Tensor
    grad: Tensor


def oracle(inputs: Inputs, options: RowOptions = RowOptions(), grad: Tensor | None = None) -> Oracle:  # noqa: B008
    """Return loss and gradient of the dense definition in float64, for the incoming gradient `grad` (N,) or ones."""
    return _differentiate(inputs, options, grad, torch.float64)


def eager(inputs: Inputs, options: RowOptions = RowOptions(), grad: Tensor | None = None) -> Oracle:  # noqa: B008
    """Return the same as eager PyTorch gives it in the dtype of the logits: the yardstick of the error budget."""
    return _differentiate(inputs, options, grad, inputs.logits.dtype)


def _differentiate(inputs: Inputs, options: RowOptions, grad: Tensor | None, dtype: torch.dtype) -> Oracle:
    logits = inputs.logits.detach().to(dtype).requires_grad_()
    target = dense_target(inputs.indices, inputs.weights, inputs.uniform, inputs.logits.shape[1])
    loss = dense_loss(logits, target, options)
    grad = torch.ones_like(loss) if grad is None else grad.to(loss.dtype)
    return Oracle(loss.detach(), torch.autograd.grad(loss, logits, grad)[0])


def dense_statistics(logits: Tensor, indices: Tensor, options: RowOptions = RowOptions()) -> TokenStatistics:  # noqa: B008
    """Return the token statistics of logits ``(N, V)`` from their definition, in the dtype of the logits."""
    z = logits * options.logit_scale
    if options.softcap:
        z = options.softcap * torch.tanh(z / options.softcap)
    log_p, listed = z.log_softmax(-1), torch.zeros_like(z, dtype=torch.bool)
    for slot in range(indices.shape[1]):
        filled = (indices[:, slot] >= 0).nonzero().squeeze(1)
        listed[filled, indices[filled, slot].long()] = True
    log_prob = log_p.gather(-1, indices.clamp(min=0).long()).where(indices >= 0, 0.0)
    rest = log_p.masked_fill(listed, -torch.inf)
    has_rest = (rest.detach() != -torch.inf).any(-1)
    log_rest = rest.where(has_rest[:, None], 0.0).logsumexp(-1).where(has_rest, -torch.inf)
    p = log_p.exp()
    entropy = -(p * log_p.where(p != 0, 0.0)).sum(-1)
    return TokenStatistics(log_prob, log_rest, entropy, z.logsumexp(-1), logits.argmax(-1))


def statistics_gradient(
    logits: Tensor, indices: Tensor, options: RowOptions, grads: StatisticsGradients, dtype: torch.dtype
) -> tuple[TokenStatistics, Tensor]:
    """Return `dense_statistics` computed in `dtype`, and what comes back for them to the logits."""
    leaf = logits.detach().to(dtype).requires_grad_()
    statistics = dense_statistics(leaf, indices, options)
    used = [(value, grad.to(dtype)) for value, grad in zip(statistics, grads, strict=False) if grad is not None]
    gradient = torch.autograd.grad([value for value, _ in used], leaf, [grad for _, grad in used])[0]
    return TokenStatistics(*(value.detach() for value in statistics)), gradient


def random_gradients(indices: Tensor, dtype: torch.dtype, *, seed: int = 13) -> StatisticsGradients:
    """Return random gradients of the statistics at indices ``(N, S)``."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (tuple(indices.shape), *[(len(indices),)] * 3)
    return StatisticsGradients(
        *(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    )


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return ``||actual - expected|| / ||expected||`` in float64 (the norm of the difference where expected is 0)."""
    actual, expected = actual.detach().double(), expected.detach().double()
    scale = expected.norm().item() if expected.numel() else 0.0
    error = (actual - expected).norm().item() if expected.numel() else 0.0
    return error / scale if scale else error


def assert_error_budget(actual: Tensor, eager: Tensor, oracle: Tensor, *, factor: float = 2.0) -> None:
    """Assert that `actual` is at most `factor` times as far from the oracle as eager PyTorch at the same precision.

    One unit of rounding of the result's own dtype is granted where eager is exact by luck. For float64 results the
    oracle is itself rounded, and 1e-13 is granted.

    Raises:
        AssertionError: on a wrong shape, a NaN, or an error beyond the budget.
    """
    if actual.shape != oracle.shape:
        raise AssertionError(f"shape {tuple(actual.shape)}, expected {tuple(oracle.shape)}")
    error, budget = relative_error(actual, oracle), factor * relative_error(eager, oracle)
    budget = max(budget, 1e-13 if actual.dtype == torch.float64 else torch.finfo(actual.dtype).eps)
    if not error <= budget:
        raise AssertionError(f"relative error {error:.3e} exceeds {factor} times that of eager PyTorch, {budget:.3e}")


def chi_square(observed: Sequence[float] | Tensor, expected: Sequence[float] | Tensor) -> float:
    """Return Pearson's statistic of counts over the 0.9999 quantile of its distribution: above 1 they do not fit.

    Counts of which fewer than 10 are expected are put together. The quantile is Wilson's and Hilferty's.
    """
    counts, model = (torch.as_tensor(values, dtype=torch.float64) for values in (observed, expected))
    large = model >= 10
    counts = torch.cat([counts[large], counts[~large].sum()[None]])
    model = torch.cat([model[large], model[~large].sum()[None]])
    if ((model == 0) & (counts > 0)).any():
        return float("inf")
    counts, model = counts[model > 0], model[model > 0]
    degrees = counts.numel() - 1
    variance = 2 / (9 * degrees)
    quantile = degrees * (1 - variance + 3.719 * variance**0.5) ** 3
    return float(((counts - model) ** 2 / model).sum() / quantile)
