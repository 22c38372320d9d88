"""Targets of token- and sequence-level smoothing, built in one pass: directly in eager code, else as an operator."""

from __future__ import annotations

import torch
from torch import Tensor

from smoothloss import backends
from smoothloss.backends.common import Candidates, TableRows, replaced
from smoothloss.ops.checks import check_index_values, checked_op
from smoothloss.ops.register import define
from smoothloss.ops.transforms import is_eager, needs_the_reference


def smoothed_target(
    candidates: Candidates, table: TableRows | None, token_alpha: float, impl: str = "auto"
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return what `backends.reference.smoothed_target` defines, from the implementation `impl`.

    Raises:
        RuntimeError: `impl` cannot run on this device.
    """
    if impl == "auto" and needs_the_reference():
        impl = "reference"
    kind = backends.choose(impl, candidates.target.device.type, torch.float32)
    if kind == "reference" and not torch.compiler.is_compiling():
        for name, tokens in (("target", candidates.target), ("samples", candidates.samples)):
            if tokens is not None:
                limit = torch.iinfo(tokens.dtype).max
                check_index_values(tokens, limit, name, ignore=candidates.ignore_index)
    if kind == "reference" and torch.compiler.is_compiling():  # nobody else could say that one is out of range
        limit, ignored = torch.iinfo(torch.int32).max, candidates.ignore_index
        candidates = replaced(Candidates, candidates, target=checked_op(candidates.target, limit, ignored))
        if candidates.samples is not None:
            candidates = replaced(Candidates, candidates, samples=checked_op(candidates.samples, limit, ignored))
    if kind == "reference" or is_eager(candidates.target, candidates.samples, candidates.sample_weights):
        return backends.get(kind).smoothed_target(candidates, table, token_alpha)
    if torch.compiler.is_compiling():
        return _compiled(candidates, table, token_alpha, kind)
    return _operator(candidates, table, token_alpha, kind)


def _operator(
    candidates: Candidates, table: TableRows | None, token_alpha: float, kind: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    rows = (None, None, None) if table is None else tuple(table)
    indices, weights, uniform = smoothed_target_op(*candidates, *rows, token_alpha, kind)
    return indices, weights, uniform if table is not None and table.tail is not None else None


def _compiled(
    candidates: Candidates, table: TableRows | None, token_alpha: float, kind: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Build the target with shares of 1/2, and make of these the shares that are wanted.

    A number that is an operator's argument is a constant of compiled code, and another one compiles it again; as a
    factor it is not.
    """
    target, samples, own, omega, alpha, _ = candidates
    if own is None:
        own = torch.ones(target.shape[0], dtype=torch.float32, device=target.device)
    if samples is not None:
        if omega is None:
            omega = torch.ones(samples.shape[:2], dtype=torch.float32, device=target.device) / samples.shape[0]
        omega = omega * alpha * 2
    halved = replaced(Candidates, candidates, target_weights=own * (2 - 2 * alpha), sample_weights=omega, alpha=0.5)
    indices, weights, uniform = _operator(halved, table, 0.5, kind)
    if table is None:
        return indices, weights, uniform
    is_own = torch.arange(weights.shape[-1], device=weights.device) % (table.indices.shape[1] + 1) == 0
    ones = torch.ones_like(weights[:1])
    weights = weights * torch.where(is_own, ones * (2 - 2 * token_alpha), ones * token_alpha * 2)
    return indices, weights, None if uniform is None else uniform * token_alpha * 2


def _build(
    target: Tensor, samples: Tensor | None, target_weights: Tensor | None, sample_weights: Tensor | None,
    alpha: float, ignore_index: int,
    table_indices: Tensor | None, table_weights: Tensor | None, table_tail: Tensor | None,
    token_alpha: float, impl: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    candidates = Candidates(target, samples, target_weights, sample_weights, alpha, ignore_index)
    table = None
    if table_indices is not None and table_weights is not None:
        table = TableRows(table_indices, table_weights, table_tail)
    indices, weights, uniform = backends.get(impl).smoothed_target(candidates, table, token_alpha)
    return indices, weights, weights.new_empty(0) if uniform is None else uniform


def _build_fake(
    target: Tensor, samples: Tensor | None, target_weights: Tensor | None, sample_weights: Tensor | None,
    alpha: float, ignore_index: int,
    table_indices: Tensor | None, table_weights: Tensor | None, table_tail: Tensor | None,
    token_alpha: float, impl: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    del target_weights, sample_weights, alpha, ignore_index, table_weights, token_alpha, impl
    batch, length = target.shape
    neighbours = 0 if table_indices is None else table_indices.shape[1]
    shape = (batch * length, (1 if samples is None else 1 + samples.shape[0]) * (neighbours + 1))
    indices = target.new_empty(shape, dtype=torch.int32)
    uniform = target.new_empty(0 if table_tail is None else batch * length, dtype=torch.float32)
    return indices, target.new_empty(shape, dtype=torch.float32), uniform


smoothed_target_op = define(
    "smoothed_target(Tensor target, Tensor? samples, Tensor? target_weights, Tensor? sample_weights, float alpha,"
    " int ignore_index, Tensor? table_indices, Tensor? table_weights, Tensor? table_tail, float token_alpha, str impl)"
    " -> (Tensor indices, Tensor weights, Tensor uniform)",
    _build,
    _build_fake,
)
