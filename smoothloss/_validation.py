"""What users may pass, checked before any kernel runs. Messages name the argument, what was got, what was expected."""

from __future__ import annotations

import math

import torch
from torch import Tensor

REDUCTIONS = ("none", "mean", "sum")


def check_tensor(value: object, name: str, *, floating: bool | None = None) -> Tensor:
    """Return `value` when it is a tensor, floating or integer as asked, else raise TypeError."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a torch.Tensor")
    if floating is True and not value.dtype.is_floating_point:
        raise TypeError(f"{name}: got {value.dtype}, expected a floating-point dtype")
    if floating is False and value.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name}: got {value.dtype}, expected torch.int64 or torch.int32")
    return value


def check_shape(value: Tensor, name: str, expected: tuple[int, ...], meaning: str) -> None:
    """Raise ValueError unless `value` has the shape `expected`, which the message explains by `meaning`."""
    if value.shape != torch.Size(expected):
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected {tuple(expected)} ({meaning})")


def check_device(value: Tensor, name: str, other: Tensor, other_name: str) -> None:
    """Raise ValueError unless both tensors are on one device."""
    if value.device != other.device:
        raise ValueError(f"{name}: got a tensor on {value.device}, expected {other.device}, where {other_name} is")


def check_number(
    value: float, name: str, low: float = -math.inf, high: float = math.inf, *, open_low: bool = False
) -> float:
    """Return `value` as a float when it is a finite number in [low, high], or (low, high] with `open_low`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a number")
    inside = (value > low if open_low else value >= low) and value <= high
    # Comparisons, not math.isinf: torch.compile follows them with numbers that vary from call to call.
    if not (inside and -math.inf < value < math.inf):
        bracket = "(" if open_low else "["
        raise ValueError(f"{name}: got {value}, expected a number in {bracket}{low}, {high}]")
    return float(value)


def check_reduction(reduction: str) -> None:
    """Raise ValueError unless `reduction` is "none", "mean" or "sum"."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: got {reduction!r}, expected one of {', '.join(map(repr, REDUCTIONS))}")
