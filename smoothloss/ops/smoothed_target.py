"""Targets of token- and sequence-level smoothing as one torch operator, so that building them costs one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from smoothloss.backends import choose, implementation
from smoothloss.backends.common import SparseRows
from smoothloss.ops._register import define


def _build(
    candidates: Tensor, weights: Tensor | None,
    table_indices: Tensor | None, table_weights: Tensor | None, table_tail: Tensor | None,
    token_alpha: float, ignore_index: int, impl: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    table = None
    if table_indices is not None and table_weights is not None:
        table = SparseRows(table_indices, table_weights, table_tail)
    indices, entries, uniform = implementation(impl).smoothed_target(
        candidates, weights, table, token_alpha, ignore_index
    )
    return indices, entries, entries.new_empty(0) if uniform is None else uniform


def _build_fake(
    candidates: Tensor, weights: Tensor | None,
    table_indices: Tensor | None, table_weights: Tensor | None, table_tail: Tensor | None,
    token_alpha: float, ignore_index: int, impl: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    del weights, table_weights, token_alpha, ignore_index, impl
    count, batch, length = candidates.shape
    neighbours = 0 if table_indices is None else table_indices.shape[1]
    shape = (batch * length, count * (neighbours + 1))
    indices = candidates.new_empty(shape, dtype=torch.int32)
    uniform = candidates.new_empty(0 if table_tail is None else batch * length, dtype=torch.float32)
    return indices, candidates.new_empty(shape, dtype=torch.float32), uniform


smoothed_target_op = define(
    "smoothed_target(Tensor candidates, Tensor? weights, Tensor? table_indices, Tensor? table_weights,"
    " Tensor? table_tail, float token_alpha, int ignore_index, str impl)"
    " -> (Tensor indices, Tensor weights, Tensor uniform)",
    _build,
    _build_fake,
)


def smoothed_target(
    candidates: Tensor,
    weights: Tensor | None,
    table: SparseRows | None,
    token_alpha: float,
    ignore_index: int,
    impl: str = "auto",
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return what `ops.reference.smoothed_target` defines, from the implementation `impl`.

    Args:
        candidates: ``(J, B, T)`` tokens.
        weights: ``(J, B)``, or None: all 1.
        table: similarity rows, or None.
        token_alpha: share of the similarity rows.
        ignore_index: marks positions, and candidates of a position, without a target.
        impl: see `ops.dispatch.choose`.

    Raises:
        RuntimeError: `impl` cannot run on this device.
    """
    kind = choose(impl, candidates.device.type, torch.float32)
    rows = (None, None, None) if table is None else (table.indices, table.weights, table.tail)
    indices, entries, uniform = smoothed_target_op(candidates, weights, *rows, token_alpha, ignore_index, kind)
    return indices, entries, uniform if table is not None and table.tail is not None else None
