"""What users may pass, checked before any kernel runs. Messages name the argument, what was got, what was expected."""

from __future__ import annotations

import math
import numbers
import sys
from typing import Any

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


def check_local(value: Tensor, name: str) -> None:
    """Raise TypeError for a DTensor, whose parts lie on several devices."""
    module = sys.modules.get("torch.distributed.tensor")
    if module is not None and isinstance(value, module.DTensor):
        raise TypeError(f"{name}: got a DTensor, expected a torch.Tensor: pass {name}.full_tensor()")


def check_constant(value: Tensor, name: str) -> None:
    """Raise ValueError for a tensor that requires grad where there is no gradient."""
    if value.requires_grad:
        raise ValueError(
            f"{name}: got a tensor that requires grad, expected a constant: detach it, or build the loss from"
            " token_statistics, whose log-probabilities may be weighted by anything"
        )


def check_shape(value: Tensor, name: str, expected: tuple[int, ...], meaning: str) -> None:
    """Raise ValueError unless `value` has the shape `expected`, which the message explains by `meaning`."""
    if tuple(value.shape) != tuple(expected):
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected {tuple(expected)} ({meaning})")


def check_device(value: Tensor, name: str, other: Tensor, other_name: str) -> None:
    """Raise ValueError unless both tensors are on one device."""
    if value.device != other.device:
        raise ValueError(f"{name}: got a tensor on {value.device}, expected {other.device}, where {other_name} is")


def check_number(
    value: Any, name: str, low: float = -math.inf, high: float = math.inf, *, open_low: bool = False
) -> float:
    """Return `value` as a float when it is a finite number in [low, high], or (low, high] with `open_low`.

    NumPy's numbers are numbers like others.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"{name}: got {type(value).__name__}, expected a number")
        value = float(value)
    inside = (value > low if open_low else value >= low) and value <= high
    # Comparisons, not math.isinf: torch.compile follows them with numbers that vary from call to call.
    if not (inside and -math.inf < value < math.inf):
        bracket = "(" if open_low else "["
        raise ValueError(f"{name}: got {value}, expected a number in {bracket}{low}, {high}]")
    return float(value)


def check_choice(value: object, name: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(map(repr, choices))}")


def check_flag(value: object, name: str) -> bool:
    """Return `value` when it is True or False, of NumPy too, else raise TypeError."""
    if not isinstance(value, bool) and type(value).__name__ not in ("bool_", "bool"):
        raise TypeError(f"{name}: got {type(value).__name__}, expected True or False")
    return bool(value)
