"""The primitive on NVIDIA GPUs, in Triton: the launchers of the row kernels, and when they can run.

Triton is imported in this folder alone, and this folder only when it is used. Every function
works on rows that its caller has checked: logits ``(N, V)`` of stride 1 along V, indices ``(N, S)`` int32 and
contiguous, weights ``(N, S)`` and everything else per row in the accumulator dtype (float64 for float64 logits, else
float32). A negative index or one beyond V is an empty slot. Nothing here waits for the device, and the same input gives
the same bits.

With ``TRITON_INTERPRET=1`` in the environment before the import, the kernels run on CPU tensors, for tests.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from smoothloss.backends.common import (
    SAVED_JENSEN_SHANNON,
    SAVED_STATISTICS,
    Candidates,
    Forward,
    RowOptions,
    RowTarget,
    StatisticsGradients,
    TableRows,
    TokenStatistics,
    accumulator_dtype,
)
from smoothloss.backends.triton.arguments import (
    as_int32,
    dense_arguments,
    in_two,
    on_device,
    scalars,
    transform_scalars,
    widths,
)
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
    statistics_config,
    unit,
)
from smoothloss.backends.triton.jensen_shannon import (
    _jensen_shannon_backward_kernel,
    _jensen_shannon_forward_kernel,
)
from smoothloss.backends.triton.results import _reduce_kernel, _scaled_copy_kernel
from smoothloss.backends.triton.rows import (
    _sparse_cross_entropy_backward_kernel,
    _sparse_cross_entropy_forward_kernel,
    option_flags,
)
from smoothloss.backends.triton.statistics import (
    _token_statistics_backward_kernel,
    _token_statistics_forward_kernel,
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
    if torch.version.hip is not None:
        return "the Triton kernels are launched in ways that AMD's compiler does not know"
    if not torch.cuda.is_available():
        return "no CUDA device is available"
    if torch.cuda.get_device_capability() < (8, 0):
        return "the Triton kernels need a GPU of compute capability 8.0 or higher"
    return None


def forward(logits: Tensor, target: RowTarget, options: RowOptions, reduction: str) -> Forward:
    """Return the losses of logits ``(N, V)``, see `Backend`; one launch, or two for a reduction.

    A row of mass 0 has loss 0 and statistics (0, 1, 0), and its logits are not read.
    """
    rows, dtype = logits.shape[0], accumulator_dtype(logits.dtype)
    losses, mass = (logits.new_empty(rows, dtype=dtype) for _ in range(2))
    statistics = logits.new_empty((rows, 3), dtype=dtype)
    _launch_forward(logits, target, options, losses, mass, statistics, None)
    if reduction == "none":
        return Forward(losses, statistics, mass, None)
    loss, scale = reduce(losses, mass, reduction)
    return Forward(loss, statistics, None, scale)


def backward(
    grad: Tensor, scale: Tensor | None, logits: Tensor, statistics: Tensor, target: RowTarget,
    options: RowOptions, out: Tensor, mass: Tensor | None = None,
) -> None:  # fmt: skip
    """Write the gradient of every row's loss, times `grad` and `scale`, with respect to the logits as they came in.

    ::

        dz = (m + 2 z_loss lse) p - u / V - q + gamma p (log p + H);   dlogits = logit_scale (1 - (z / c)^2) dz

    See `Kernels`. `grad` and `scale` are read on the device; `out` may be of any floating dtype.
    """
    rows, num_entries = logits.shape[0], _num_entries(target)
    if rows == 0:
        return
    indices, weights, ignored = _entries(target, statistics)
    config, constants = _constants(logits, target, options, out)
    mix, mix_sizes = dense_arguments(target.dense, indices, weights)
    with on_device(logits):
        _sparse_cross_entropy_backward_kernel[(rows,)](
            grad, grad if scale is None else scale, logits, statistics, indices, weights,
            weights if target.uniform is None else target.uniform, *mix,
            weights if target.prior is None else target.prior, _selected(weights, constants),
            weights if mass is None else mass, out, *widths(constants["UNIT"], logits, out),
            0 if grad.numel() == 1 else 1, num_entries, *mix_sizes, ignored, *scalars(options, statistics.dtype),
            **constants, HAS_UNIFORM=target.uniform is not None, HAS_MASS=mass is not None,
            HAS_SCALE=scale is not None, num_warps=config.num_warps, maxnreg=config.max_registers,
        )  # fmt: skip


def forward_backward(
    logits: Tensor, target: RowTarget, options: RowOptions, out: Tensor, reduction: str
) -> tuple[Forward, bool]:
    """Return losses and masses, and write the gradient for ``grad = 1`` to `out`, in one launch, see `Kernels`.

    `out` may be the storage of `logits`, or another buffer of another dtype (float32 logits, bfloat16 `out`).
    """
    dtype = accumulator_dtype(logits.dtype)
    losses, mass = (logits.new_empty(logits.shape[0], dtype=dtype) for _ in range(2))
    _launch_forward(logits, target, options, losses, mass, losses, out)
    if reduction == "none":
        return Forward(losses, mass, mass, None), True
    loss, scale = reduce(losses, mass, reduction)
    return Forward(loss, mass, mass, scale), True


def token_statistics(logits: Tensor, indices: Tensor, options: RowOptions) -> tuple[TokenStatistics, Tensor]:
    """Return the statistics of logits ``(N, V)`` and what their backward is to know, see `Backend`; one launch.

    What is kept of a row: largest z and ``sum exp(z - largest)`` of the listed classes, those of the rest, the entropy.
    """
    (rows, num_entries), dtype = indices.shape, accumulator_dtype(logits.dtype)
    log_prob = logits.new_empty((rows, num_entries), dtype=dtype)
    log_rest, entropy, logsumexp = (logits.new_empty(rows, dtype=dtype) for _ in range(3))
    argmax = logits.new_empty(rows, dtype=torch.int64)
    saved = logits.new_empty((rows, SAVED_STATISTICS), dtype=dtype)
    if rows:
        units, config, has_many = unit(logits), statistics_config(logits), num_entries > ENTRY_BLOCKS[-1]
        words = -(-logits.shape[1] // (32 * config.block)) * config.block if has_many else 0
        with on_device(logits):
            _token_statistics_forward_kernel[(rows,)](
                logits, as_int32(indices), log_prob, log_rest, entropy, logsumexp, argmax,
                indices.new_empty((rows, words), dtype=torch.int32) if has_many else saved, saved,
                logits.shape[1] // units, logits.stride(0) // units, num_entries, *transform_scalars(options, dtype),
                UNIT=units, ACCUMULATOR=_ACCUMULATORS[dtype], BLOCK=config.block, BLOCK_S=entry_block(num_entries),
                HAS_SOFTCAP=options.softcap != 0, HAS_MANY_ENTRIES=has_many,
                num_warps=config.num_warps, maxnreg=config.max_registers,
            )  # fmt: skip
    return TokenStatistics(log_prob, log_rest, entropy, logsumexp, argmax), saved


def token_statistics_backward(
    grads: StatisticsGradients, logits: Tensor, indices: Tensor, saved: Tensor, options: RowOptions, out: Tensor
) -> None:
    """Write the gradient of the logits that the gradients of `TokenStatistics` give, see `Kernels`; one launch."""
    rows, num_entries = indices.shape
    if rows == 0:
        return
    units, config, has_many = unit(logits, out), row_config(logits), num_entries > ENTRY_BLOCKS[-1]
    with on_device(logits):
        _token_statistics_backward_kernel[(rows,)](
            *(saved if grad is None else grad for grad in grads), logits, as_int32(indices), saved,
            torch.empty_like(indices, dtype=saved.dtype) if has_many else saved, out, *widths(units, logits, out),
            num_entries, *transform_scalars(options, saved.dtype),
            UNIT=units, ACCUMULATOR=_ACCUMULATORS[saved.dtype], BLOCK=config.block, BLOCK_S=entry_block(num_entries),
            HAS_LOG_PROB=grads.log_prob is not None, HAS_REST=grads.log_rest is not None,
            HAS_ENTROPY=grads.entropy is not None, HAS_LOGSUMEXP=grads.logsumexp is not None,
            HAS_SOFTCAP=options.softcap != 0, HAS_MANY_ENTRIES=has_many,
            num_warps=config.num_warps, maxnreg=config.max_registers,
        )  # fmt: skip


def jensen_shannon(logits: Tensor, teacher: RowTarget, beta: float, options: RowOptions) -> tuple[Tensor, Tensor]:
    """Return the divergence of each row of logits ``(N, V)``, see `Kernels`; one launch."""
    (rows, num_entries), dtype = teacher.indices.shape, accumulator_dtype(logits.dtype)
    losses, saved = logits.new_empty(rows, dtype=dtype), logits.new_empty((rows, SAVED_JENSEN_SHANNON), dtype=dtype)
    if rows:
        units, config = unit(logits), row_config(logits)
        with on_device(logits):
            _jensen_shannon_forward_kernel[(rows,)](
                logits, as_int32(teacher.indices), teacher.weights, teacher.uniform, losses, saved,
                logits.shape[1] // units, logits.stride(0) // units, num_entries, *in_two(beta),
                *transform_scalars(options, dtype),
                UNIT=units, ACCUMULATOR=_ACCUMULATORS[dtype], BLOCK=config.block, BLOCK_S=entry_block(num_entries),
                HAS_SOFTCAP=options.softcap != 0, num_warps=config.num_warps, maxnreg=config.max_registers,
            )  # fmt: skip
    return losses, saved


def jensen_shannon_backward(
    grad: Tensor, logits: Tensor, teacher: RowTarget, saved: Tensor, beta: float, options: RowOptions, out: Tensor
) -> None:
    """Write the gradient of the logits to `out`, see `Kernels`; one launch."""
    rows, num_entries = teacher.indices.shape
    if rows == 0:
        return
    units, config, has_many = unit(logits, out), row_config(logits), num_entries > ENTRY_BLOCKS[-1]
    with on_device(logits):
        _jensen_shannon_backward_kernel[(rows,)](
            grad, logits, as_int32(teacher.indices), teacher.weights, teacher.uniform, saved,
            torch.empty_like(teacher.indices, dtype=saved.dtype) if has_many else saved, out,
            *widths(units, logits, out), num_entries, *in_two(beta), *transform_scalars(options, saved.dtype),
            UNIT=units, ACCUMULATOR=_ACCUMULATORS[saved.dtype], BLOCK=config.block, BLOCK_S=entry_block(num_entries),
            HAS_SOFTCAP=options.softcap != 0, HAS_MANY_ENTRIES=has_many,
            num_warps=config.num_warps, maxnreg=config.max_registers,
        )  # fmt: skip


def reduce(losses: Tensor, mass: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    """Return "sum" or "mean" of losses ``(N,)`` and the factor that it gives the gradient, in one launch."""
    loss, scale = losses.new_empty(()), losses.new_empty(())
    with on_device(losses):
        _reduce_kernel[(1,)](
            losses, mass, loss, scale, losses.numel(),
            BLOCK=MEAN_BLOCK, IS_MEAN=reduction == "mean", num_warps=MEAN_WARPS,
        )  # fmt: skip
    return loss, scale


def scaled_copy(values: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``(values * factor).to(dtype)``, rounded once, see `Kernels`."""
    out = torch.empty_like(values, dtype=dtype)
    if out.numel():
        programs = -(-out.numel() // SCALED_BLOCK)
        with on_device(values):
            _scaled_copy_kernel[(programs,)](
                values, factor.to(values.dtype), out, out.numel(), BLOCK=SCALED_BLOCK, num_warps=SCALED_WARPS
            )
    return out


def smoothed_target(
    candidates: Candidates, table: TableRows | None, token_alpha: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the indices, weights and uniform mass that `reference.smoothed_target` defines, in one launch."""
    target, samples, target_weights, sample_weights, alpha, ignore_index = candidates
    (batch, length), count = target.shape, candidates.per_position()
    rows, neighbours = batch * length, 0 if table is None else table.indices.shape[1]
    tokens, tail = 0 if table is None else table.indices.shape[0], None if table is None else table.tail
    indices = target.new_empty((rows, count * (neighbours + 1)), dtype=torch.int32)
    weights = torch.empty_like(indices, dtype=torch.float32)
    uniform = None if tail is None else weights.new_empty(rows)
    if rows == 0:
        return indices, weights, uniform
    block, num_warps = next((pair for pair in TARGET_BLOCKS if indices.shape[1] <= pair[0]), TARGET_BLOCKS[-1])
    with on_device(target):
        _smoothed_target_kernel[(rows,)](
            target, target if samples is None else samples,
            weights if target_weights is None else target_weights,
            weights if sample_weights is None else sample_weights,
            *((indices, weights) if table is None else table[:2]), weights if tail is None else tail,
            indices, weights, weights if uniform is None else uniform,
            rows, batch, length, count, neighbours, tokens, ignore_index,
            alpha, alpha / max(count - 1, 1), 1.0 - token_alpha, token_alpha,
            BLOCK_S=block, HAS_SAMPLES=samples is not None, HAS_OWN_WEIGHTS=target_weights is not None,
            HAS_WEIGHTS=sample_weights is not None, HAS_TABLE=table is not None, HAS_TAIL=tail is not None,
            num_warps=num_warps, maxnreg=TARGET_REGISTERS,
        )  # fmt: skip
    return indices, weights, uniform


def _launch_forward(
    logits: Tensor, target: RowTarget, options: RowOptions, losses: Tensor, mass: Tensor, statistics: Tensor,
    out: Tensor | None,
) -> None:  # fmt: skip
    rows, num_entries = logits.shape[0], _num_entries(target)
    if rows == 0:
        return
    dense = target.dense
    indices, weights, ignored = _entries(target, losses)
    config, constants = _constants(logits, target, options, logits if out is None else out)
    constants["HAS_MANY_ENTRIES"] &= out is not None  # the forward alone needs no copy of anything
    programs = rows
    if out is not None:  # the only kernel that reads a row twice
        programs = row_programs(rows, bytes_between_reads(logits, out), config.resident, memory(logits.device))
        if programs < rows and (constants["HAS_ENTROPY"] or constants["HAS_SOFTCAP"]):
            constants["BLOCK"] = min(constants["BLOCK"], LOOP_BLOCK)
    mix, mix_sizes = dense_arguments(dense, indices, weights)
    has_uniform = target.uniform is not None
    with on_device(logits):
        _sparse_cross_entropy_forward_kernel[(programs,)](
            logits, indices, weights, target.uniform if has_uniform else weights, *mix,
            weights if target.prior is None else target.prior, _selected(weights, constants), losses, mass, statistics,
            logits if out is None else out, *widths(constants["UNIT"], logits, logits if out is None else out), rows,
            num_entries, *mix_sizes, ignored, *scalars(options, losses.dtype), **constants, HAS_UNIFORM=has_uniform,
            HAS_SHARES=dense is not None or has_uniform or options.label_smoothing != 0,
            HAS_GRADIENT=out is not None, HAS_ROW_LOOP=programs < rows,
            num_warps=config.num_warps, maxnreg=config.max_registers,
        )  # fmt: skip


def _num_entries(target: RowTarget) -> int:
    return target.indices.shape[1] if target.indices.dim() == 2 else 1


def _entries(target: RowTarget, like: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return indices, weights or a stand-in, and the class number to ignore."""
    if target.weights is None:
        return target.indices, like, -1 if target.ignore_index is None else target.ignore_index
    if target.ignore_index is not None:
        indices = target.indices.masked_fill(target.indices == target.ignore_index, -1)
        return as_int32(indices), target.weights, -1
    return as_int32(target.indices), target.weights, -1


def _constants(logits: Tensor, target: RowTarget, options: RowOptions, out: Tensor) -> tuple[RowConfig, dict[str, Any]]:
    """Return the configuration, and the compile-time arguments that forward and backward share."""
    has_dense, num_entries = target.dense is not None or target.prior is not None, _num_entries(target)
    config = row_config(logits, has_dense)
    return config, {
        "UNIT": unit(logits, out),
        "ACCUMULATOR": tl.float64 if logits.dtype == torch.float64 else tl.float32,
        "BLOCK": config.block,
        "BLOCK_S": entry_block(num_entries),
        "HAS_WEIGHTS": target.weights is not None,
        "HAS_DENSE": has_dense,
        "HAS_PRIOR": target.prior is not None,
        **option_flags(options),
        "HAS_MANY_ENTRIES": num_entries > ENTRY_BLOCKS[-1],
    }


def _selected(weights: Tensor, constants: dict[str, Any]) -> Tensor:
    """Return a scratch (N, S) for the selected logits where the kernel cannot keep them, else a stand-in."""
    return torch.empty_like(weights) if constants["HAS_MANY_ENTRIES"] else weights
