"""Products with the columns of a matrix that a device has chosen, in Triton: how many they are, no host knows.

Where all columns are kept, the matrix itself is read in the place of a copy; programs that find nothing to do end. Sums
are float32, in an order that is the same every time.
"""
# mypy: ignore-errors

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from smoothloss.backends.triton.arguments import on_device
from smoothloss.backends.triton.config import UNITS

# Of the products: 96 KiB of shared memory on sm_90, which every GPU from sm_80 on has. Tiles of 128 x 256 spill.
TILES = {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3}
# Of the copy: rows and columns of a program.
_ROWS, _COLUMNS = 32, 128
# The columns of a copy are a multiple of this, and so are those that the products read of it.
PADDING = 64


class KeptColumns:
    """Columns ``kept[:size]`` of a matrix ``(N, V)``: all V, or at most `most`, which are copied side by side."""

    def __init__(self, matrix: Tensor, kept: Tensor, size: Tensor, most: int) -> None:
        """Copy them, and zeros up to a multiple of `PADDING` columns; nothing where there are more than `most`.

        Args:
            matrix: ``(N, V)``, stride 1 along V, float32 or 16 bits.
            kept: ``(V,)`` int32.
            size: one element.
            most: what the copy has room for.
        """
        self.matrix, self.kept, self.size = matrix, kept, size
        self.copy = matrix.new_empty(len(matrix), -(-most // PADDING) * PADDING)
        programs = -(-self.copy.shape[1] // _COLUMNS) * -(-len(matrix) // _ROWS)
        with on_device(matrix):
            _copy_columns_kernel[(programs,)](
                matrix, kept, size, self.copy, matrix.stride(0), self.copy.shape[1] // PADDING, len(matrix),
                BLOCK_ROWS=_ROWS, BLOCK_COLUMNS=_COLUMNS, PADDING=PADDING, num_warps=4,
            )  # fmt: skip

    def add_rows(self, total: Tensor, weight: Tensor) -> None:
        """Compute ``total += matrix[:, kept[:size]] @ weight[kept[:size]]``.

        Args:
            total: ``(N, D)`` float32, contiguous.
            weight: ``(V, D)`` of the dtype of the matrix, contiguous.
        """
        self._launch(_add_rows_kernel, total, weight)

    def add_to_rows(self, total: Tensor, inputs: Tensor) -> None:
        """Compute ``total[kept[:size]] += matrix[:, kept[:size]].T @ inputs``.

        Args:
            total: ``(V, D)`` float32, contiguous.
            inputs: ``(N, D)`` of the dtype of the matrix, contiguous.
        """
        self._launch(_add_to_rows_kernel, total, inputs)

    def _launch(self, kernel: Any, total: Tensor, other: Tensor) -> None:
        (rows, classes), hidden = self.matrix.shape, total.shape[1]
        unit, unit_hidden = _unit(classes, self.matrix.stride(0)), _unit(hidden)
        programs = -(-len(total) // TILES["BLOCK_M"]) * -(-hidden // TILES["BLOCK_N"])
        with on_device(total):
            kernel[(programs,)](
                total, self.matrix, self.copy, self.kept, self.size, other,
                classes // unit, self.matrix.stride(0) // unit, self.copy.shape[1] // PADDING, hidden // unit_hidden,
                rows, UNIT=unit, UNIT_HIDDEN=unit_hidden, PADDING=PADDING, **TILES,
            )  # fmt: skip


def _unit(*sizes: int) -> int:
    return next(unit for unit in UNITS if all(size % unit == 0 for size in sizes))


@triton.jit(do_not_specialize=["matrix_stride", "paddings", "num_rows"])
def _copy_columns_kernel(
    matrix,  # (N, V)
    kept,  # (V,)
    size,  # (1,)
    out,  # (N, paddings * PADDING)
    matrix_stride,
    paddings,
    num_rows,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    PADDING: tl.constexpr,
):
    width = paddings * PADDING
    count = tl.load(size)
    blocks = tl.cdiv(width, BLOCK_COLUMNS)
    start = tl.program_id(0) % blocks * BLOCK_COLUMNS
    if (start < count) & (count <= width):
        row = (tl.program_id(0) // blocks * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
        column = start + tl.arange(0, BLOCK_COLUMNS)
        own = tl.load(kept + column, mask=column < count, other=0)
        there = (row < num_rows)[:, None]
        values = tl.load(
            matrix + row[:, None] * matrix_stride + own[None, :], mask=there & (column < count)[None, :], other=0.0
        )
        # What lies between the last column and the end of its padding is read with it.
        tl.store(out + row[:, None] * width + column[None, :], values, mask=there & (column < width)[None, :])


_SIZES = ["units", "matrix_units", "paddings", "hidden_units", "num_rows"]


@triton.jit
def _chosen(matrix, copy, size, units, matrix_units, paddings, UNIT: tl.constexpr, PADDING: tl.constexpr):
    """Return from where the columns are read, the stride there, how many can be and how many are."""
    count = tl.load(size).to(tl.int32)
    source, stride, limit = copy, paddings * PADDING, paddings * PADDING
    if count > limit:
        source, stride, limit = matrix, matrix_units * UNIT, units * UNIT
    return source, stride, limit, count


@triton.jit(do_not_specialize=_SIZES)
def _add_rows_kernel(
    total,  # (N, D)
    matrix,  # (N, V)
    copy,  # (N, paddings * PADDING)
    kept,  # (V,)
    size,  # (1,)
    weight,  # (V, D)
    units,
    matrix_units,
    paddings,
    hidden_units,
    num_rows,
    UNIT: tl.constexpr,
    UNIT_HIDDEN: tl.constexpr,
    PADDING: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    source, stride, limit, count = _chosen(matrix, copy, size, units, matrix_units, paddings, UNIT, PADDING)
    hidden = hidden_units * UNIT_HIDDEN
    blocks = tl.cdiv(hidden, BLOCK_N)
    row = (tl.program_id(0) // blocks * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    place = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    there, inside = (row < num_rows)[:, None], (place < hidden)[None, :]
    out = total + row[:, None] * hidden + place[None, :]
    sums = tl.load(out, mask=there & inside, other=0.0)
    lane = tl.arange(0, BLOCK_K)
    for start in range(0, count, BLOCK_K):
        column = start + lane
        part = tl.load(
            source + row[:, None] * stride + column[None, :], mask=there & (column < limit)[None, :], other=0.0
        )
        own = tl.load(kept + column, mask=column < count, other=0).to(tl.int64)
        rows = tl.load(
            weight + own[:, None] * hidden + place[None, :], mask=(column < count)[:, None] & inside, other=0.0
        )
        sums = tl.dot(part, rows, sums, input_precision="ieee")
    tl.store(out, sums, mask=there & inside)


@triton.jit(do_not_specialize=_SIZES)
def _add_to_rows_kernel(
    total,  # (V, D)
    matrix,  # (N, V)
    copy,  # (N, paddings * PADDING)
    kept,  # (V,)
    size,  # (1,)
    inputs,  # (N, D)
    units,
    matrix_units,
    paddings,
    hidden_units,
    num_rows,
    UNIT: tl.constexpr,
    UNIT_HIDDEN: tl.constexpr,
    PADDING: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    source, stride, limit, count = _chosen(matrix, copy, size, units, matrix_units, paddings, UNIT, PADDING)
    hidden = hidden_units * UNIT_HIDDEN
    blocks = tl.cdiv(hidden, BLOCK_N)
    first = tl.program_id(0) // blocks * BLOCK_M
    if first < count:
        column = first + tl.arange(0, BLOCK_M)
        place = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
        readable, inside = (column < limit)[None, :], (place < hidden)[None, :]
        sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        lane = tl.arange(0, BLOCK_K).to(tl.int64)
        for start in range(0, num_rows, BLOCK_K):
            row = start + lane
            there = (row < num_rows)[:, None]
            part = tl.load(source + row[:, None] * stride + column[None, :], mask=there & readable, other=0.0)
            states = tl.load(inputs + row[:, None] * hidden + place[None, :], mask=there & inside, other=0.0)
            sums = tl.dot(tl.trans(part), states, sums, input_precision="ieee")
        own = tl.load(kept + column, mask=column < count, other=0).to(tl.int64)
        out = total + own[:, None] * hidden + place[None, :]
        filled = (column < count)[:, None] & inside
        tl.store(out, tl.load(out, mask=filled, other=0.0) + sums, mask=filled)
