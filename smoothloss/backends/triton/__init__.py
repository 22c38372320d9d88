"""The primitive on NVIDIA GPUs, in Triton: the launchers of the row kernels, and when they can run.

Triton is imported here and in the kernels' own files, `_triton_*`, and this module only when it is used. Every function
works on rows that its caller has checked: logits ``(N, V)`` of stride 1 along V, indices ``(N, S)`` int32 and
contiguous, weights ``(N, S)`` and everything else per row in the accumulator dtype (float64 for float64 logits, else
float32). A negative index or one beyond V is an empty slot. Nothing here waits for the device, and the same input gives
the same bits.

With ``TRITON_INTERPRET=1`` in the environment before the import, the kernels run on CPU tensors, for tests.
"""

from __future__ import annotations

import contextlib
import functools
import struct
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from smoothloss.backends.common import DenseRows, RowOptions, SparseRows
from smoothloss.backends.triton.config import (
    ENTRY_BLOCKS,
    LOOP_BLOCK,
    MEAN_BLOCK,
    MEAN_WARPS,
    SCALED_BLOCK,
    SCALED_WARPS,
    TARGET_BLOCKS,
    TARGET_REGISTERS,
    RowConfig,
    bytes_between_reads,
    entry_block,
    memory,
    row_config,
    row_programs,
    unit,
)
from smoothloss.backends.triton.results import _mean_kernel, _scaled_copy_kernel
from smoothloss.backends.triton.rows import (
    _logsumexp_and_select_forward_kernel,
    _sparse_cross_entropy_backward_kernel,
    _sparse_cross_entropy_forward_kernel,
)
from smoothloss.backends.triton.target import _smoothed_target_kernel

LOGITS_DTYPES: tuple[torch.dtype, ...] = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_INTERPRETED = not isinstance(_sparse_cross_entropy_forward_kernel, triton.runtime.JITFunction)
_ACCUMULATORS = {torch.float32: tl.float32, torch.float64: tl.float64}


@functools.cache
def unavailable(device_type: str, dtype: torch.dtype) -> str | None:
    """Return why the Triton kernels cannot run on logits of this device type and dtype, or None when they can."""
    if dtype not in LOGITS_DTYPES:
        return f"the Triton kernels take float16, bfloat16, float32 and float64 logits, not {dtype}"
    if _INTERPRETED:
        if device_type != "cpu":
            return f"TRITON_INTERPRET=1 runs the kernels on CPU tensors, not on {device_type}"
        if dtype not in _ACCUMULATORS:
            return f"the Triton interpreter computes in float32 and float64 correctly, not in {dtype}"
        return None
    if device_type != "cuda":
        return f"the Triton kernels need CUDA tensors, not {device_type}"
    if not torch.cuda.is_available():
        return "no CUDA device is available"
    if torch.cuda.get_device_capability() < (8, 0):
        return "the Triton kernels need a GPU of compute capability 8.0 or higher"
    return None


def sparse_cross_entropy_forward(
    logits: Tensor,
    indices: Tensor,
    weights: Tensor,
    uniform: Tensor | None,
    options: RowOptions,
    dense: DenseRows | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return loss, logsumexp, entropy and target mass of every row, ``(N,)`` each, in the accumulator dtype.

    The logsumexp is float64 always.

    ::

        loss = sum_s w_s (lse - z_{i_s}) + u (lse - mean_v z_v) + z_loss lse^2 - gamma H(softmax(z))

    Args:
        logits: ``(N, V)``; ``z`` is what the scale and the softcap of `options` make of them.
        indices: ``(N, S)`` int32, contiguous; negative or not below V: an empty slot.
        weights: ``(N, S)``, accumulator dtype, contiguous.
        uniform: ``(N,)``, accumulator dtype, the mass ``u`` spread over all classes; or None.
        options: see `RowOptions`; label smoothing eps stands for ``w <- (1-eps) w``, ``u <- (1-eps) u + eps m``.
        dense: rows that add ``sum_v q_v (lse - z_v)``, q their mixture, or None.

    The entropy is empty unless ``options.entropy``. A row of mass ``m = sum_s w_s + u + sum_j w_j = 0``, the latter of
    the dense rows, has loss, lse and entropy 0, and its logits are not read.
    """
    rows = logits.shape[0]
    loss, mass = weights.new_empty(rows), weights.new_empty(rows)
    lse = weights.new_empty(rows, dtype=torch.float64)
    entropy = weights.new_empty(rows if options.entropy else 0)
    _launch_forward(logits, indices, weights, uniform, options, loss, mass, lse, entropy, None, dense)
    return loss, lse, entropy, mass


def sparse_cross_entropy_backward(
    grad: Tensor,
    logits: Tensor,
    lse: Tensor,
    entropy: Tensor,
    indices: Tensor,
    weights: Tensor,
    uniform: Tensor | None,
    options: RowOptions,
    out: Tensor,
    mass: Tensor | None = None,
    dense: DenseRows | None = None,
    scale: Tensor | None = None,
) -> None:
    """Write the gradient of every row's loss, times `grad`, with respect to the logits as they came in.

    ::

        dz = (m + 2 z_loss lse) p - u / V - q + gamma p (log p + H);   dlogits = logit_scale (1 - (z / c)^2) dz

    Args:
        grad: ``(N,)``, or one element for all rows, which is read on the device.
        logits, indices, weights, uniform, options, dense: as in the forward.
        lse, entropy: ``(N,)``, what the forward returned.
        out: ``(N, V)``, any floating dtype, stride 1 along V; may be the storage of `logits`. Every element is
            written, 0 in rows without mass.
        mass: ``(N,)`` takes the place of ``m`` above. No row is ignored then: where it is 0, the logits are not read
            and ``-q`` alone is written. Not together with `dense`.
        scale: one element, accumulator dtype, that multiplies `grad`; read on the device. None: 1.
    """
    rows, num_entries = indices.shape
    if rows == 0:
        return
    config, constants = _constants(logits, indices, options, dense, out)
    mix, mix_sizes = _dense_arguments(dense, indices, weights)
    with _on_device(logits):
        _sparse_cross_entropy_backward_kernel[(rows,)](
            grad, grad if scale is None else scale, logits, lse, entropy, indices, weights,
            weights if uniform is None else uniform, *mix, _selected(weights, constants),
            weights if mass is None else mass, out, *_widths(constants["UNIT"], logits, out),
            0 if grad.numel() == 1 else 1, num_entries, *mix_sizes, *_scalars(options, weights.dtype), **constants,
            HAS_UNIFORM=uniform is not None, HAS_MASS=mass is not None, HAS_SCALE=scale is not None,
            num_warps=config.num_warps, maxnreg=config.max_registers,
        )  # fmt: skip


def sparse_cross_entropy_forward_backward(
    logits: Tensor,
    indices: Tensor,
    weights: Tensor,
    uniform: Tensor | None,
    options: RowOptions,
    out: Tensor,
    dense: DenseRows | None = None,
) -> tuple[Tensor, Tensor]:
    """Return loss and target mass ``(N,)`` and write the gradient for ``grad = 1`` to `out`, in one launch.

    Arguments as in the forward and the backward; `out` may be the storage of `logits`, or another buffer of another
    dtype (float32 logits, bfloat16 `out`).
    """
    loss, mass = (weights.new_empty(logits.shape[0]) for _ in range(2))
    _launch_forward(logits, indices, weights, uniform, options, loss, mass, loss, loss, out, dense)
    return loss, mass


def logsumexp_and_select_forward(logits: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``logits.logsumexp(-1)`` (N,) and ``logits.gather(-1, indices)`` (N, S), 0 in empty slots.

    From the same arithmetic, so that ``lse - selected`` is never below zero; lse in float64, selected in the
    accumulator dtype.
    """
    rows, num_entries = indices.shape
    accumulator = torch.float64 if logits.dtype == torch.float64 else torch.float32
    lse = logits.new_empty(rows, dtype=torch.float64)
    selected = logits.new_empty((rows, num_entries), dtype=accumulator)
    if rows == 0:
        return lse, selected
    config, units = row_config(logits), unit(logits)
    with _on_device(logits):
        _logsumexp_and_select_forward_kernel[(rows,)](
            logits, indices, lse, selected, logits.shape[1] // units, logits.stride(0) // units, num_entries,
            UNIT=units, ACCUMULATOR=_ACCUMULATORS[accumulator], BLOCK=config.block,
            BLOCK_S=entry_block(num_entries), num_warps=config.num_warps, maxnreg=config.max_registers,
        )  # fmt: skip
    return lse, selected


def mean(loss: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``loss.sum() / count`` and ``1 / max(count, 1)``, ``count = mass.count_nonzero()``, in one launch.

    Args:
        loss: ``(N,)``, accumulator dtype, contiguous.
        mass: ``(N,)``, likewise.

    Returns:
        Two tensors of no dimension in the dtype of `loss`. Nothing to average gives nan.
    """
    average, scale = loss.new_empty(()), loss.new_empty(())
    with _on_device(loss):
        _mean_kernel[(1,)](loss, mass, average, scale, loss.numel(), BLOCK=MEAN_BLOCK, num_warps=MEAN_WARPS)
    return average, scale


def scaled_copy(values: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``(values * factor).to(dtype)``, rounded once.

    Args:
        values: contiguous, accumulator dtype.
        factor: of no dimension.
        dtype: of the result.
    """
    out = torch.empty_like(values, dtype=dtype)
    if out.numel():
        programs = -(-out.numel() // SCALED_BLOCK)
        with _on_device(values):
            _scaled_copy_kernel[(programs,)](
                values, factor.to(values.dtype), out, out.numel(), BLOCK=SCALED_BLOCK, num_warps=SCALED_WARPS
            )
    return out


def smoothed_target(
    candidates: Tensor, weights: Tensor | None, table: SparseRows | None, token_alpha: float, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return ``sum_j w_j ((1 - token_alpha) delta(y_j) + token_alpha R[y_j])`` as entries, in one launch.

    Equal candidates of a position are merged into the first of them. Candidate j fills the slots from ``j (K + 1)`` on:
    its own token, then its K neighbours; without a table K is 0. A position whose candidate 0 is `ignore_index` has no
    entry, other candidates that are `ignore_index`, or negative, none of theirs. A candidate beyond the table keeps its
    own entry.

    Args:
        candidates: ``(J, B, T)`` int32 or int64.
        weights: ``(J, B)``, or None for 1.
        table: rows R, or None.
        token_alpha: share of the rows; without a table of no account.
        ignore_index: see above.

    Returns:
        ``indices (B T, S)`` int32, -1 in empty slots, ``weights (B T, S)`` float32, ``S = J (K + 1)``, and the mass of
        the tails ``(B T,)`` float32, None without a table or tails.
    """
    count, batch, length = candidates.shape
    rows, neighbours = batch * length, 0 if table is None else table.indices.shape[1]
    tokens, tail = 0 if table is None else table.indices.shape[0], None if table is None else table.tail
    indices = candidates.new_empty((rows, count * (neighbours + 1)), dtype=torch.int32)
    entries = torch.empty_like(indices, dtype=torch.float32)
    uniform = None if tail is None else entries.new_empty(rows)
    assert count > 0  # the first candidate says which positions are ignored
    if rows == 0:
        return indices, entries, uniform
    block, num_warps = next((pair for pair in TARGET_BLOCKS if indices.shape[1] <= pair[0]), TARGET_BLOCKS[-1])
    with _on_device(candidates):
        _smoothed_target_kernel[(rows,)](
            candidates.contiguous(), entries if weights is None else weights.float().contiguous(),
            *((indices, entries) if table is None else table[:2]), entries if tail is None else tail,
            indices, entries, entries if uniform is None else uniform,
            rows, batch, length, count, neighbours, tokens, ignore_index, 1.0 - token_alpha, token_alpha,
            BLOCK_S=block, HAS_WEIGHTS=weights is not None, HAS_TABLE=table is not None, HAS_TAIL=tail is not None,
            num_warps=num_warps, maxnreg=TARGET_REGISTERS,
        )  # fmt: skip
    return indices, entries, uniform


def _launch_forward(
    logits: Tensor,
    indices: Tensor,
    weights: Tensor,
    uniform: Tensor | None,
    options: RowOptions,
    loss: Tensor,
    mass: Tensor,
    lse: Tensor,
    entropy: Tensor,
    out: Tensor | None,
    dense: DenseRows | None,
) -> None:
    rows, num_entries = indices.shape
    if rows == 0:
        return
    config, constants = _constants(logits, indices, options, dense, logits if out is None else out)
    constants["HAS_MANY_ENTRIES"] &= out is not None  # the forward alone needs no copy of anything
    programs = rows
    if out is not None:  # the only kernel that reads a row twice
        programs = row_programs(rows, bytes_between_reads(logits, out), config.resident, memory(logits.device))
        if programs < rows and (constants["HAS_ENTROPY"] or constants["HAS_SOFTCAP"]):
            constants["BLOCK"] = min(constants["BLOCK"], LOOP_BLOCK)
    mix, mix_sizes = _dense_arguments(dense, indices, weights)
    with _on_device(logits):
        _sparse_cross_entropy_forward_kernel[(programs,)](
            logits, indices, weights, weights if uniform is None else uniform, *mix, _selected(weights, constants),
            loss, mass, lse, entropy, logits if out is None else out,
            *_widths(constants["UNIT"], logits, logits if out is None else out), rows, num_entries, *mix_sizes,
            *_scalars(options, loss.dtype), **constants, HAS_UNIFORM=uniform is not None,
            # With dense rows, what every class has is part of their mixture.
            HAS_SPREAD=dense is None and (uniform is not None or options.label_smoothing != 0),
            HAS_GRADIENT=out is not None, HAS_ROW_LOOP=programs < rows,
            num_warps=config.num_warps, maxnreg=config.max_registers,
        )  # fmt: skip


def _constants(
    logits: Tensor, indices: Tensor, options: RowOptions, dense: DenseRows | None, out: Tensor
) -> tuple[RowConfig, dict[str, Any]]:
    """Return the configuration, and the compile-time arguments that forward and backward share."""
    config, num_entries = row_config(logits, dense is not None), indices.shape[1]
    return config, {
        "UNIT": unit(logits, out),
        "ACCUMULATOR": tl.float64 if logits.dtype == torch.float64 else tl.float32,
        "BLOCK": config.block,
        "BLOCK_S": entry_block(num_entries),
        "HAS_DENSE": dense is not None,
        "HAS_ENTROPY": options.entropy != 0,
        "HAS_SOFTCAP": options.softcap != 0,
        "HAS_MANY_ENTRIES": num_entries > ENTRY_BLOCKS[-1],
    }


def _widths(units: int, logits: Tensor, out: Tensor) -> tuple[int, int, int]:
    """Return V and the row strides of both, counted in `units`."""
    return logits.shape[1] // units, logits.stride(0) // units, out.stride(0) // units


def _dense_arguments(
    dense: DenseRows | None, indices: Tensor, weights: Tensor
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[int, int]]:
    """Return the pointers and the sizes of dense rows, or stand-ins."""
    if dense is None:
        return (weights, indices, weights), (0, 0)
    return (dense.values, dense.rows, dense.weights), (dense.values.shape[0], dense.rows.shape[1])


def _selected(weights: Tensor, constants: dict[str, Any]) -> Tensor:
    """Return a scratch (N, S) for the selected logits where the kernel cannot keep them, else a stand-in."""
    return torch.empty_like(weights) if constants["HAS_MANY_ENTRIES"] else weights


def _scalars(options: RowOptions, dtype: torch.dtype) -> list[float]:
    """Return the options as the kernels take them: five floats, then what float32 cuts off them."""
    if dtype != torch.float64:
        return [*options, 0.0, 0.0, 0.0, 0.0, 0.0]
    rounded = struct.unpack("5f", struct.pack("5f", *options))
    return [*rounded, *(value - high for value, high in zip(options, rounded, strict=True))]


def _on_device(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    # Triton launches on the current device, whatever its arguments live on.
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
