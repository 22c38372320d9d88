"""What the launchers hand to the kernels: tensors as they read them, numbers in the float32 that Triton takes."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import torch
from torch import Tensor

from smoothloss.backends.common import DenseRows, RowOptions


def as_int32(indices: Tensor) -> Tensor:
    """Return indices as int32, in which several of them are loaded together; what is out of range stays so."""
    if indices.dtype == torch.int64:
        indices = indices.clamp(min=-1, max=torch.iinfo(torch.int32).max).to(torch.int32)
    return indices


def widths(units: int, logits: Tensor, out: Tensor) -> tuple[int, int, int]:
    """Return V and the row strides of both, counted in `units`."""
    return logits.shape[1] // units, logits.stride(0) // units, out.stride(0) // units


def dense_arguments(
    dense: DenseRows | None, indices: Tensor, weights: Tensor
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[int, int]]:
    """Return the pointers and the sizes of dense rows, or stand-ins."""
    if dense is None:
        return (weights, indices, weights), (0, 0)
    return (dense.values, dense.rows, dense.weights), (dense.values.shape[0], dense.rows.shape[1])


def scalars(options: RowOptions, dtype: torch.dtype) -> list[float]:
    """Return the options as the kernels take them: all of them, then what float32 cuts off them."""
    if dtype != torch.float64:
        return [*options, *[0.0] * len(options)]
    layout = f"{len(options)}f"
    rounded = struct.unpack(layout, struct.pack(layout, *options))
    return [*rounded, *(value - high for value, high in zip(options, rounded, strict=True))]


def in_two(value: float) -> tuple[float, float]:
    """Return a number in float32, which Triton takes numbers in, and what that cuts off."""
    (high,) = struct.unpack("f", struct.pack("f", value))
    return high, value - high


def transform_scalars(options: RowOptions, dtype: torch.dtype) -> list[float]:
    """Return scale and softcap of `scalars`, then what float32 cuts off them."""
    values = scalars(options, dtype)
    return [*values[3:5], *values[8:10]]


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which a launch takes the tensor's device; Triton itself takes the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
