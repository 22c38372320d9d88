"""The primitive on NVIDIA GPUs, in Triton: the launchers of the row kernels, and when they can run.

Triton is imported here and in the kernels' own files, `_triton_rows` and `_triton_device`, and this module only when it
is used. Every function works on rows that its caller has checked: logits ``(N, V)`` of stride 1 along V, indices
``(N, S)`` int32 and contiguous, weights ``(N, S)`` and everything else per row in the accumulator dtype (float64 for
float64 logits, else float32). A negative index or one beyond V is an empty slot. Nothing here waits for
the device, and the same input gives the same bits.

With ``TRITON_INTERPRET=1`` in the environment before the import, the kernels run on CPU tensors, for tests.
"""

from __future__ import annotations

import contextlib
import functools
import struct
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from smoothloss.ops._triton_rows import (
    _logsumexp_and_select_forward_kernel,
    _sparse_cross_entropy_backward_kernel,
    _sparse_cross_entropy_forward_kernel,
)
from smoothloss.ops.options import RowOptions


class RowConfig(NamedTuple):
    """How rows up to `max_classes` wide are run: `block` classes at a time by `num_warps` warps of `max_registers`.

    The bound on the registers is what the register file holds or less. Without one, ptxas may spill a scalar or two in
    order to fit one more program on a multiprocessor.
    """

    max_classes: int
    block: int
    num_warps: int
    max_registers: int


# By accumulator dtype, narrowest rows first, the last takes the rest; these are all that ship. Very wide rows get one
# program a multiprocessor, so that all rows at work fit into the L2 cache, from which pass 2 reads them again.
CONFIGS: dict[torch.dtype, tuple[RowConfig, ...]] = {
    torch.float32: (RowConfig(1024, 1024, 4, 255), RowConfig(32768, 4096, 8, 255), RowConfig(2**31, 8192, 16, 128)),
    torch.float64: (RowConfig(2**31, 1024, 8, 255),),
}
# Entries that a kernel keeps in registers. Beyond the largest it walks through them, block against block.
ENTRY_BLOCKS: tuple[int, ...] = (1, 32, 128)
# V and the strides are passed in units of 8 where they allow it: rows of 9800 classes are not multiples of 16, which is
# what Triton looks for, and would be read by 2-byte loads.
UNITS: tuple[int, ...] = (8, 1)
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
    logits: Tensor, indices: Tensor, weights: Tensor, uniform: Tensor | None, options: RowOptions
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

    The entropy is empty unless ``options.entropy``. A row of mass ``m = sum_s w_s + u = 0`` has loss, lse and entropy
    0, and its logits are not read.
    """
    rows = logits.shape[0]
    loss, mass = weights.new_empty(rows), weights.new_empty(rows)
    lse = weights.new_empty(rows, dtype=torch.float64)
    entropy = weights.new_empty(rows if options.entropy else 0)
    _launch_forward(logits, indices, weights, uniform, options, loss, mass, lse, entropy, None)
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
) -> None:
    """Write the gradient of every row's loss, times `grad`, with respect to the logits as they came in.

    ::

        dz = (m + 2 z_loss lse) p - u / V - q + gamma p (log p + H);   dlogits = logit_scale (1 - (z / c)^2) dz

    Args:
        grad: ``(N,)``, or one element for all rows, which is read on the device.
        logits, indices, weights, uniform, options: as in the forward.
        lse, entropy: ``(N,)``, what the forward returned.
        out: ``(N, V)``, any floating dtype, stride 1 along V; may be the storage of `logits`. Every element is
            written, 0 in rows without mass.
        mass: ``(N,)`` takes the place of ``m`` above. No row is ignored then: where it is 0, the logits are not read
            and ``-q`` alone is written.
    """
    rows, num_entries = indices.shape
    if rows == 0:
        return
    config, constants = _constants(logits, indices, options, out)
    with _on_device(logits):
        _sparse_cross_entropy_backward_kernel[(rows,)](
            grad, logits, lse, entropy, indices, weights, _selected(logits, indices, constants),
            weights if uniform is None else uniform, weights if mass is None else mass, out,
            logits.shape[1] // constants["UNIT"], logits.stride(0) // constants["UNIT"],
            out.stride(0) // constants["UNIT"], 0 if grad.numel() == 1 else 1, num_entries,
            *_scalars(options, weights.dtype), **constants,
            HAS_UNIFORM=uniform is not None, HAS_MASS=mass is not None,
            num_warps=config.num_warps, maxnreg=config.max_registers,
        )  # fmt: skip


def sparse_cross_entropy_forward_backward(
    logits: Tensor, indices: Tensor, weights: Tensor, uniform: Tensor | None, options: RowOptions, out: Tensor
) -> tuple[Tensor, Tensor]:
    """Return loss and target mass ``(N,)`` and write the gradient for ``grad = 1`` to `out`, in one launch.

    Arguments as in the forward and the backward; `out` may be the storage of `logits`, or another buffer of another
    dtype (float32 logits, bfloat16 `out`).
    """
    loss, mass = (weights.new_empty(logits.shape[0]) for _ in range(2))
    _launch_forward(logits, indices, weights, uniform, options, loss, mass, loss, loss, out)
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
    config, unit = _config(logits), _unit(logits)
    with _on_device(logits):
        _logsumexp_and_select_forward_kernel[(rows,)](
            logits, indices, lse, selected, logits.shape[1] // unit, logits.stride(0) // unit, num_entries,
            UNIT=unit, ACCUMULATOR=_ACCUMULATORS[accumulator], BLOCK=config.block,
            BLOCK_S=_entry_block(num_entries), num_warps=config.num_warps, maxnreg=config.max_registers,
        )  # fmt: skip
    return lse, selected


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
) -> None:
    rows, num_entries = indices.shape
    if rows == 0:
        return
    config, constants = _constants(logits, indices, options, logits if out is None else out)
    constants["HAS_MANY_ENTRIES"] &= out is not None  # the forward alone needs no copy of anything
    with _on_device(logits):
        _sparse_cross_entropy_forward_kernel[(rows,)](
            logits, indices, weights, _selected(logits, indices, constants),
            weights if uniform is None else uniform, loss, mass, lse, entropy, logits if out is None else out,
            logits.shape[1] // constants["UNIT"], logits.stride(0) // constants["UNIT"],
            (logits if out is None else out).stride(0) // constants["UNIT"], num_entries,
            *_scalars(options, loss.dtype), **constants,
            HAS_UNIFORM=uniform is not None, HAS_SPREAD=uniform is not None or options.label_smoothing != 0,
            HAS_GRADIENT=out is not None, num_warps=config.num_warps, maxnreg=config.max_registers,
        )  # fmt: skip


def _constants(logits: Tensor, indices: Tensor, options: RowOptions, out: Tensor) -> tuple[RowConfig, dict[str, Any]]:
    """Return the configuration, and the compile-time arguments that forward and backward share."""
    config, num_entries = _config(logits), indices.shape[1]
    return config, {
        "UNIT": _unit(logits, out),
        "ACCUMULATOR": tl.float64 if logits.dtype == torch.float64 else tl.float32,
        "BLOCK": config.block,
        "BLOCK_S": _entry_block(num_entries),
        "HAS_ENTROPY": options.entropy != 0,
        "HAS_SOFTCAP": options.softcap != 0,
        "HAS_MANY_ENTRIES": num_entries > ENTRY_BLOCKS[-1],
    }


def _config(logits: Tensor) -> RowConfig:
    configs = CONFIGS[torch.float64 if logits.dtype == torch.float64 else torch.float32]
    return next(config for config in configs if logits.shape[1] <= config.max_classes)


def _entry_block(num_entries: int) -> int:
    return next((block for block in ENTRY_BLOCKS if num_entries <= block), ENTRY_BLOCKS[-1])


def _unit(*tensors: Tensor) -> int:
    sizes = [size for tensor in tensors for size in (tensor.shape[1], tensor.stride(0))]
    return next(unit for unit in UNITS if all(size % unit == 0 for size in sizes))


def _selected(logits: Tensor, indices: Tensor, constants: dict[str, Any]) -> Tensor:
    """Return a copy (N, S) of the selected logits where the kernel cannot keep them, else a stand-in."""
    if not constants["HAS_MANY_ENTRIES"]:
        return logits
    return logits.gather(1, indices.clamp(0, logits.shape[1] - 1).long())


def _scalars(options: RowOptions, dtype: torch.dtype) -> list[float]:
    """Return the options as the kernels take them: five floats, then what float32 cuts off them."""
    if dtype != torch.float64:
        return [*options, 0.0, 0.0, 0.0, 0.0, 0.0]
    rounded = struct.unpack("5f", struct.pack("5f", *options))
    return [*rounded, *(value - high for value, high in zip(options, rounded, strict=True))]


def _on_device(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    # Triton launches on the current device, whatever its arguments live on.
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
